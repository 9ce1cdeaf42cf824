"""Answers queries on this machine: threads decode photos, one thread runs the models, in batches."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import torch

from ..photo_decoding import own_pixel_limit
from ..pipeline.processors import cores
from .batcher import Batcher
from .queries import PhotoAnswer, QueryError, is_sampled
from .request_log import LOG
from .served_model import PreparedPhoto, ServedModel, Work

if TYPE_CHECKING:
    from ..pipeline.network_source import NetworkSource
    from ..pipeline.results import PhotoResult
    from .metrics import ServiceMetrics
    from .queries import PhotoQuery
    from .settings import ServiceSettings

__all__ = ["Engine", "LocalEngine", "check_names"]


class Engine(Protocol):
    """Answers queries, by models of this process or of others.

    The methods raise `QueryError` for what cannot be answered, with a status of HTTP, and `PhotoError` for a photo.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models."""
        ...

    async def start(self) -> None:
        """Load the models."""
        ...

    async def stop(self) -> None:
        """Release all threads."""
        ...

    async def answer(self, model: str, query: PhotoQuery) -> PhotoAnswer:
        """The answer to one query."""
        ...

    async def describe(self, model: str) -> dict[str, Any]:
        """What clients may want to know of a model."""
        ...

    async def class_names(self, model: str) -> tuple[str, ...]:
        """The name of each class of a model."""
        ...

    async def layers(self, model: str) -> list[dict[str, Any]]:
        """The layers of a model that can be explained."""
        ...

    async def reload(self, model: str) -> None:
        """Load a model again from its source; queries are answered by the old one until the new one is ready."""
        ...


class LocalEngine:
    """Answers queries in this process.

    Args:
        sources: where the models come from, by name.
    """

    def __init__(
        self, sources: Mapping[str, NetworkSource], settings: ServiceSettings, metrics: ServiceMetrics
    ) -> None:
        check_names(sources)
        self._sources, self._settings, self._metrics = dict(sources), settings, metrics
        self._models: dict[str, ServedModel] = {}
        self._cleanup = ExitStack()
        # A queue for each model: batches take turns in the one thread that runs models.
        self._batchers: dict[str, Batcher[Work, PreparedPhoto, PhotoResult]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self._sources)

    async def start(self) -> None:
        """Load the models, unless they are."""
        if self._models:
            return
        self._cleanup.enter_context(own_pixel_limit())
        self._decoders = _executor(cores(), "decode", 1)
        self._runner = _executor(1, "model", self._settings.threads)
        self._cleanup.callback(self._decoders.shutdown, cancel_futures=True)
        self._cleanup.callback(self._runner.shutdown, cancel_futures=True)
        for name in self._sources:
            await self._load(name)

    async def stop(self) -> None:
        """Release all threads."""
        self._cleanup.close()

    async def answer(self, model: str, query: PhotoQuery) -> PhotoAnswer:
        """The answer to one query."""
        served = self._served(model)
        watched = (
            query.verb == "predict"
            and query.topk is None
            and not query.targets
            and query.layer is None
            and is_sampled(query.data, self._settings.sample_rate)
        )
        if watched:
            query = replace(query, verb="explain")
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._decoders, self._prepare, model, served, query, watched)
        batcher = self._batchers[model]
        result = await batcher.submit(prepared.work, prepared)
        self._metrics.photo(model, result)
        photo, method = prepared.photo, prepared.work.question.method
        return PhotoAnswer(result, photo.size, photo.box, prepared.work.input_size, photo.pixels, method)

    async def describe(self, model: str) -> dict[str, Any]:
        """What clients may want to know of a model."""
        return self._served(model).describe()

    async def class_names(self, model: str) -> tuple[str, ...]:
        """The name of each class of a model."""
        return tuple(self._served(model).network.class_names)

    async def layers(self, model: str) -> list[dict[str, Any]]:
        """The layers of a model that can be explained."""
        served = self._served(model)
        return await asyncio.get_running_loop().run_in_executor(self._runner, served.layers)

    async def reload(self, model: str) -> None:
        """Load a model again from its source; queries are answered by the old one until the new one is ready."""
        self._served(model)
        await self._load(model)
        self._metrics.measure("reloads_total", 1, model=model)
        LOG.info("reloaded", extra={"fields": {"model": model}})

    def _served(self, model: str) -> ServedModel:
        if model not in self._models:
            raise QueryError(f"there is no model {model!r}; choose one of {', '.join(self.names)}", 404)
        return self._models[model]

    async def _load(self, name: str) -> None:
        # Not in the thread that runs models, so that a reload stops nobody; it also tries the new model there.
        loader = _executor(1, "load", self._settings.threads)
        try:
            loop = asyncio.get_running_loop()
            served = await loop.run_in_executor(loader, ServedModel, self._sources[name], self._settings)
        finally:
            loader.shutdown(wait=False)
        most = self._settings.max_batch or (4 if served.device.type == "cpu" else 32)
        self._models[name] = served
        self._batchers[name] = Batcher(lambda work, photos: self._run(name, work, photos), most, self._runner)

    def _prepare(self, model: str, served: ServedModel, query: PhotoQuery, watched: bool) -> PreparedPhoto:
        with self._metrics.stage(model, "decode"):
            return served.prepare(query, watched=watched)

    def _run(self, model: str, work: Work, photos: Sequence[PreparedPhoto]) -> list[PhotoResult]:
        start = time.perf_counter()
        for prepared in photos:
            self._metrics.measure("stage_seconds", start - prepared.since, model=model, stage="queue")
        self._metrics.measure("batch_photos", len(photos), model=model)
        self._metrics.measure("queued_photos", sum(batcher.depth for batcher in list(self._batchers.values())))
        with self._metrics.stage(model, "model"):
            return work.model.run(work, photos)


def check_names(names: Iterable[str]) -> None:
    """Refuse names of models that cannot stand in an address.

    Raises:
        ValueError: such a name, or no name at all.
    """
    names = list(names)
    if not names:
        raise ValueError("there is no model to serve; name at least one")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{name!r} cannot stand in an address; give a name of letters, digits, '.', '_' and '-'")


def _executor(count: int, name: str, threads: int) -> ThreadPoolExecutor:
    """``count`` threads, in each of which torch uses so many threads of its own."""
    return ThreadPoolExecutor(count, name, initializer=_use_threads, initargs=(threads,))


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    cv2.setNumThreads(1)
