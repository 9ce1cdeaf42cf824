"""A pipeline of three stages that work at the same time: load, process, finish.

Threads load and finish; the caller's thread processes. The queues between the stages are bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

__all__ = ["run_stages"]

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Processed = TypeVar("Processed")
Finished = TypeVar("Finished")


def run_stages(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    process: Callable[[list[Loaded]], Callable[[], list[Processed]]],
    finish: Callable[[Loaded, Processed], Finished],
    *,
    batch: int,
    workers: int,
    skip: type[Exception],
) -> Generator[tuple[Item, Finished | Exception], None, None]:
    """Pass items through the three stages; yield each item, in order, with what ``finish`` returned for it.

    ``process`` takes ``batch`` loaded items at a time and returns a function that waits for the results. That function
    is called only after the next batch was handed over, so that an accelerator never waits for the host. At most about
    four batches are in the pipeline at once.

    An exception of type ``skip`` in ``load`` or ``finish`` is yielded in place of a result. Any other exception, also
    an interruption, ends the pipeline: work that has begun is completed, the rest is dropped, and all threads end.

    Example:
        >>> stages = run_stages([1, 2, 3], lambda n: 10 * n, lambda tens: lambda: [n + 1 for n in tens],
        ...     lambda ten, one: (ten, one), batch=2, workers=1, skip=ValueError)
        >>> list(stages)
        [(1, (10, 11)), (2, (20, 21)), (3, (30, 31))]
    """
    with _threads(workers) as loaders, _threads(workers) as finishers:
        finishing: deque[tuple[Item, Future[Finished] | Exception]] = deque()
        previous: _Batch[Item, Loaded, Processed] | None = None
        for entries in _batches(_loaded(loaders, load, items, batch + workers, skip), batch):
            current = _Batch(entries, process) if entries else None
            if previous:
                for item, loaded, processed in previous.results():
                    skipped = isinstance(loaded, Exception)
                    finishing.append((item, loaded if skipped else finishers.submit(finish, loaded, processed)))
            previous = current
            while finishing and (len(finishing) > batch or _is_done(finishing[0][1])):
                yield _result_or_skip(skip, finishing.popleft())
        while finishing:
            yield _result_or_skip(skip, finishing.popleft())


class _Batch(Generic[Item, Loaded, Processed]):
    """A batch that is being processed, with the items in between that could not be loaded."""

    def __init__(
        self,
        entries: list[tuple[Item, Loaded | Exception]],
        process: Callable[[list[Loaded]], Callable[[], list[Processed]]],
    ) -> None:
        self.entries = entries
        batch = [loaded for _, loaded in entries if not isinstance(loaded, Exception)]
        self.wait = process(batch) if batch else list

    def results(self) -> Iterator[tuple[Item, Any, Any]]:
        processed = iter(self.wait())
        for item, loaded in self.entries:
            yield item, loaded, None if isinstance(loaded, Exception) else next(processed)


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
            yield _result_or_skip(skip, loading.popleft())
    while loading:
        yield _result_or_skip(skip, loading.popleft())


def _result_or_skip(skip: type[Exception], entry: tuple[Item, Future[Any] | Exception]) -> tuple[Item, Any]:
    item, outcome = entry
    try:
        return item, outcome if isinstance(outcome, Exception) else outcome.result()
    except skip as error:
        return item, error


def _batches(
    entries: Iterable[tuple[Item, Loaded | Exception]], size: int
) -> Iterator[list[tuple[Item, Loaded | Exception]]]:
    """Lists with ``size`` loaded items each, fewer if most items could not be loaded; at the end an empty list."""
    batch: list[tuple[Item, Loaded | Exception]] = []
    count = 0
    for entry in entries:
        batch.append(entry)
        count += not isinstance(entry[1], Exception)
        if count == size or len(batch) == 4 * size:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
    yield []


def _is_done(outcome: Future[Finished] | Exception) -> bool:
    return isinstance(outcome, Exception) or outcome.done()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    # Each thread has its own number of threads for torch. But the number set last in any thread becomes the default of
    # all threads that have not read theirs yet, and this thread may be one of them: so it is set again at the end.
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=_use_one_core)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _use_one_core() -> None:
    # Otherwise each worker would split its small tensors among more threads, and take cores from the network.
    torch.set_num_threads(1)
