"""A bounded queue between two threads, for reading ahead and for writing in the background."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Abandoned", "Channel", "read_ahead", "write_behind"]

T = TypeVar("T")


class Abandoned(Exception):
    """The consumer has ended; it takes nothing more from the channel."""


class Channel(Generic[T]):
    """A bounded queue from a producer thread to a consumer thread; either side can end it.

    Args:
        capacity: how many items the queue holds; :meth:`put` waits while it is full.
        newest: whether a new item replaces those in the queue, so that the consumer always gets the newest one.

    Example:
        >>> channel = Channel(1, newest=True)
        >>> channel.put("old"), channel.put("new")
        (None, None)
        >>> channel.finish()
        >>> list(channel)
        ['new']
    """

    def __init__(self, capacity: int = 1, *, newest: bool = False) -> None:
        self._capacity = capacity
        self._newest = newest
        self._waiting: deque[T] = deque()
        self._finished = False
        self._error: BaseException | None = None
        self._abandoned: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Add an item, as soon as there is room.

        Raises:
            Abandoned: the consumer has ended; if it ended with an error, that error.
        """
        with self._changed:
            if self._newest:
                self._waiting.clear()
            self._changed.wait_for(lambda: self._abandoned or len(self._waiting) < self._capacity)
            if self._abandoned:
                raise self._abandoned
            self._waiting.append(item)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """End the producer's side; after the items in the queue, the consumer gets ``error``, if there is one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def abandon(self, error: BaseException | None = None) -> None:
        """End the consumer's side; the next :meth:`put` raises ``error`` or `Abandoned`."""
        with self._changed:
            self._abandoned = self._abandoned or error or Abandoned()
            self._waiting.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take all items, waiting for new ones, until the producer has finished."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished)
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item


@contextmanager
def read_ahead(
    items: Iterable[T], *, newest: bool = False, close: Callable[[], None] = lambda: None
) -> Iterator[Channel[T]]:
    """Iterate in another thread, one item ahead; call ``close`` there at the end.

    With ``newest`` the other thread does not wait: an item that has not been taken is replaced by the next one.

    Example:
        >>> with read_ahead(range(3)) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    channel: Channel[T] = Channel(newest=newest)

    def run() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                channel.put(item)
        except Abandoned:
            pass
        except BaseException as caught:  # raised in the consumer's thread
            error = caught
        finally:
            close()
            channel.finish(error)

    # A source that waits for ever cannot be stopped; a daemon thread does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield channel
    finally:
        channel.abandon()
        thread.join(timeout=1)


@contextmanager
def write_behind(consume: Callable[[T], object]) -> Iterator[Callable[[T], None]]:
    """Call ``consume`` in another thread; at the end all items have been consumed, or its error is raised.

    Example:
        >>> consumed = []
        >>> with write_behind(consumed.append) as put:
        ...     put("a")
        >>> consumed
        ['a']
    """
    channel: Channel[T] = Channel()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for item in channel:
                consume(item)
        except BaseException as caught:  # raised in the producer's thread
            errors.append(caught)
            channel.abandon(caught)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield channel.put
    except BaseException:
        channel.abandon()
        raise
    finally:
        channel.finish()
        thread.join()
    if errors:
        raise errors[0]
