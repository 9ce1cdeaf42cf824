"""Dynamic batching: what comes in while the model is busy goes through it together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

__all__ = ["Batcher"]

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Key, Item, Result]):
    """Gathers items into batches, and runs one batch at a time in ``executor``.

    Nothing waits for a batch to fill: an item that comes while no batch runs is run at once, and those that come
    meanwhile form the next batches. Items of one batch have the same key, and keys take turns. An item whose caller was
    cancelled is left out.

    Args:
        run: makes the results of a batch of one key, in order; called in ``executor``.
        max_batch: the most items of a batch.
        executor: of one thread.
    """

    def __init__(
        self, run: Callable[[Key, Sequence[Item]], Sequence[Result]], max_batch: int, executor: Executor
    ) -> None:
        self._run, self._max_batch, self._executor = run, max_batch, executor
        # Dicts keep their order: the first key is next.
        self._waiting: dict[Key, deque[tuple[Item, asyncio.Future[Result]]]] = {}
        self._running: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """How many items wait."""
        return sum(map(len, list(self._waiting.values())))

    async def submit(self, key: Key, item: Item) -> Result:
        """The result of an item; what ``run`` raises for this item is raised here, and for no other item."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((item, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run_all())
        return await done

    async def _run_all(self) -> None:
        try:
            while self._waiting:
                key, batch = self._next_batch()
                if batch:
                    await self._run_batch(key, batch)
        finally:
            self._running = None

    def _next_batch(self) -> tuple[Key, list[tuple[Item, asyncio.Future[Result]]]]:
        key = next(iter(self._waiting))
        queue = self._waiting.pop(key)
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while queue and len(batch) < self._max_batch:
            item, done = queue.popleft()
            if not done.done():
                batch.append((item, done))
        if queue:
            self._waiting[key] = queue  # behind the other keys
        return key, batch

    async def _run_batch(self, key: Key, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop = asyncio.get_running_loop()
        items = [item for item, _ in batch]
        try:
            results = await loop.run_in_executor(self._executor, self._run, key, items)
        except Exception as error:
            if len(batch) == 1:
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
                return
            for item_and_future in batch:  # one of them may have spoilt it for all
                if not item_and_future[1].done():
                    await self._run_batch(key, [item_and_future])
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)
