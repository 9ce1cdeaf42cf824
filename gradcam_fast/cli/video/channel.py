"""How one thread hands things to another without either running far ahead.

Knows nothing of what is handed over.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Abandoned", "Channel", "ahead", "behind"]

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody takes from the channel any more."""


class Channel(Generic[T]):
    """A bounded queue from one thread to another that either side can end.

    Args:
        places: how many things wait at most before :meth:`put` does.
        newest: whether, instead of waiting, what waits gives way to what comes; then only the newest is ever taken.

    Example:
        >>> channel = Channel(1, newest=True)
        >>> channel.put("old"), channel.put("new")
        (None, None)
        >>> channel.finish()
        >>> list(channel)
        ['new']
    """

    def __init__(self, places: int = 1, *, newest: bool = False) -> None:
        self._places = places
        self._newest = newest
        self._waiting: deque[T] = deque()
        self._finished = False
        self._error: BaseException | None = None
        self._abandoned: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, thing: T) -> None:
        """Hand over, as soon as there is a place.

        Raises:
            Abandoned: the other side has ended; or the error for which it did.
        """
        with self._changed:
            if self._newest:
                self._waiting.clear()
            self._changed.wait_for(lambda: self._abandoned or len(self._waiting) < self._places)
            if self._abandoned:
                raise self._abandoned
            self._waiting.append(thing)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; whoever takes meets ``error``, if there is one, after what still waits."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def abandon(self, error: BaseException | None = None) -> None:
        """Nothing more will be taken."""
        with self._changed:
            self._abandoned = self._abandoned or error or Abandoned()
            self._waiting.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take everything, waiting for what is to come, until the other side has finished."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished)
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                thing = self._waiting.popleft()
                self._changed.notify_all()
            yield thing


@contextmanager
def ahead(
    things: Iterable[T], *, newest: bool = False, close: Callable[[], None] = lambda: None
) -> Iterator[Channel[T]]:
    """Iterate in another thread, one thing ahead or, with ``newest``, at its own pace; ``close`` is called at its end.

    Example:
        >>> with ahead(range(3)) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    channel: Channel[T] = Channel(newest=newest)

    def run() -> None:
        error: BaseException | None = None
        try:
            for thing in things:
                channel.put(thing)
        except Abandoned:
            pass
        except BaseException as caught:  # it belongs to whoever takes
            error = caught
        finally:
            close()
            channel.finish(error)

    # A source that waits for ever cannot be asked to stop; it must not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield channel
    finally:
        channel.abandon()
        thread.join(timeout=1)


@contextmanager
def behind(consume: Callable[[T], object]) -> Iterator[Callable[[T], None]]:
    """Call ``consume`` in another thread, one thing behind; at the end all is consumed, or an error has been raised.

    Example:
        >>> consumed = []
        >>> with behind(consumed.append) as put:
        ...     put("a")
        >>> consumed
        ['a']
    """
    channel: Channel[T] = Channel()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for thing in channel:
                consume(thing)
        except BaseException as caught:  # it belongs to whoever puts
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
