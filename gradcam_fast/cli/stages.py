"""Three stages that work at the same time: load, look, finish. Threads load and finish, the caller's thread looks.

Knows nothing of photos or networks. Between the stages waits a bounded number of items, however many there are in all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

__all__ = ["flow"]

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Seen = TypeVar("Seen")
Made = TypeVar("Made")


def flow(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    look: Callable[[list[Loaded]], Callable[[], list[Seen]]],
    finish: Callable[[Loaded, Seen], Made],
    *,
    batch: int,
    workers: int,
    skip: type[Exception],
) -> Generator[tuple[Item, Made | Exception], None, None]:
    """Take items through the stages; yield each, in order, with what came of it.

    ``look`` is given what was loaded, ``batch`` at a time, and returns a function that waits for the results: it is
    called after the next batch was handed over, so that a device need not wait for the host. At most about four batches
    are on their way at once.

    An exception ``skip`` in ``load`` is yielded in place of a result. Any other, in any stage, also an interruption,
    ends the flow: what has begun is ended, what has not is dropped, no thread stays.

    Example:
        >>> flowing = flow([1, 2, 3], lambda n: 10 * n, lambda tens: lambda: [n + 1 for n in tens],
        ...     lambda ten, one: (ten, one), batch=2, workers=1, skip=ValueError)
        >>> list(flowing)
        [(1, (10, 11)), (2, (20, 21)), (3, (30, 31))]
    """
    with _threads(workers) as loaders, _threads(workers) as finishers:
        finishing: deque[tuple[Item, Future[Made] | Exception]] = deque()
        before: _Group[Item, Loaded, Seen] | None = None
        for entries in _grouped(_loaded(loaders, load, items, batch + workers, skip), batch):
            now = _Group(entries, look) if entries else None
            if before:
                for item, loaded, seen in before.results():
                    made = loaded if isinstance(loaded, Exception) else finishers.submit(finish, loaded, seen)
                    finishing.append((item, made))
            before = now
            while finishing and (len(finishing) > batch or _done(finishing[0][1])):
                yield _result(finishing.popleft())
        while finishing:
            yield _result(finishing.popleft())


class _Group(Generic[Item, Loaded, Seen]):
    """A batch that is being looked at, with the items among it that could not be loaded."""

    def __init__(
        self, entries: list[tuple[Item, Loaded | Exception]], look: Callable[[list[Loaded]], Callable[[], list[Seen]]]
    ) -> None:
        self.entries = entries
        loaded = [each for _, each in entries if not isinstance(each, Exception)]
        self.wait = look(loaded) if loaded else list

    def results(self) -> Iterator[tuple[Item, Any, Any]]:
        seen = iter(self.wait())
        for item, loaded in self.entries:
            yield item, loaded, None if isinstance(loaded, Exception) else next(seen)


def _loaded(
    pool: ThreadPoolExecutor,
    load: Callable[[Item], Loaded],
    items: Iterable[Item],
    ahead: int,
    skip: type[Exception],
) -> Iterator[tuple[Item, Loaded | Exception]]:
    loading: deque[tuple[Item, Future[Loaded]]] = deque()
    for item in items:
        loading.append((item, pool.submit(load, item)))
        if len(loading) > ahead:
            yield _unless(skip, loading.popleft())
    while loading:
        yield _unless(skip, loading.popleft())


def _unless(skip: type[Exception], entry: tuple[Item, Future[Any]]) -> tuple[Item, Any]:
    item, future = entry
    try:
        return item, future.result()
    except skip as error:
        return item, error


def _grouped(
    entries: Iterable[tuple[Item, Loaded | Exception]], batch: int
) -> Iterator[list[tuple[Item, Loaded | Exception]]]:
    """Lists with ``batch`` items that were loaded, fewer where most could not be, and at the end an empty list."""
    group: list[tuple[Item, Loaded | Exception]] = []
    count = 0
    for entry in entries:
        group.append(entry)
        count += not isinstance(entry[1], Exception)
        if count == batch or len(group) == 4 * batch:
            yield group
            group, count = [], 0
    if group:
        yield group
    yield []


def _done(made: Future[Made] | Exception) -> bool:
    return isinstance(made, Exception) or made.done()


def _result(entry: tuple[Item, Future[Any] | Exception]) -> tuple[Item, Any]:
    item, made = entry
    return item, made if isinstance(made, Exception) else made.result()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    # The last number set, in whatever thread, is what others start with, this one too if it has not asked before.
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=_keep_to_one_core)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _keep_to_one_core() -> None:
    # A thread that splits its small tensors among further threads takes cores from the network.
    torch.set_num_threads(1)
