"""The service on many machines, by Ray Serve: the same application, with replicas of the models behind a handle."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.util import metrics as ray_metrics

from ..exceptions import ExplanationError
from ..pipeline.network_source import NetworkSource
from .app import create_app
from .engine import LocalEngine, check_names
from .metrics import Instrument, Metric, ServiceMetrics
from .queries import QueryError
from .request_log import LOG
from .security import KEY_VARIABLE
from .settings import ServiceSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from .queries import PhotoAnswer, PhotoQuery

__all__ = ["application", "deployment", "ray_instruments", "run_on_ray"]

# Of the deployment whose replicas have the models.
_MODELS = "models"
# States in which a replica is given requests.
_SERVING = ("RUNNING", "PENDING_MIGRATION")


def deployment(
    models: Mapping[str, NetworkSource],
    settings: ServiceSettings | None = None,
    *,
    replicas: int | Mapping[str, Any] = 1,
    cpus: float = 1,
    gpus: float = 0,
) -> serve.Application:
    """The service as an application of Ray Serve, for ``serve.run``.

    Every replica has all models, and decodes and explains the photos that it is given, in batches. A photo on a replica
    that dies is answered with status 503, and Ray starts another replica.

    Args:
        models, settings: as for `create_app`. The limits of requests hold for each replica of the HTTP application.
        replicas: how many replicas of the models there are; or an autoscaling configuration of Ray Serve, such as
            ``{"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 4}``.
        cpus, gpus: what each replica needs. The model uses as many threads.

    Raises:
        ValueError: no model.
    """
    check_names(models)
    settings = replace(settings or ServiceSettings(), threads=max(1, int(cpus)))
    scale = {"num_replicas": replicas} if isinstance(replicas, int) else {"autoscaling_config": dict(replicas)}
    replica = serve.deployment(
        name=_MODELS,
        # Of memory, see allocator.use_one_arena, which would come too late here.
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}},
        },
        # The photos of a batch that runs, and those of the next ones.
        max_ongoing_requests=4 * (settings.max_batch or (32 if gpus else 4)),
        graceful_shutdown_timeout_s=settings.deadline,
        **scale,
    )(ModelReplica).bind(dict(models), settings)
    ingress = serve.deployment(
        name="http",
        ray_actor_options={"num_cpus": 0},
        # Admission counts the requests, not Ray: a client is told at once that there are too many.
        max_ongoing_requests=2 * settings.max_requests,
        graceful_shutdown_timeout_s=settings.deadline,
    )(serve.ingress()(Ingress))
    return ingress.bind(replica, tuple(models), settings)


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """The service from the arguments in a configuration file of Ray Serve; see ``deploy/kuberay.yaml``.

    The key is in the environment variable ``GRADCAM_FAST_API_KEY`` of the process that calls this.

    Args:
        arguments: ``models``, each as `NetworkSource.of` takes it; ``settings``, those of `ServiceSettings`; and the
            other arguments of `deployment`.

    Raises:
        ValueError: a model or a setting that is unknown or wrong.
    """
    options = dict(arguments)
    models = {name: NetworkSource.of(values) for name, values in options.pop("models", {}).items()}
    try:
        settings = ServiceSettings(api_key=os.environ.get(KEY_VARIABLE), **options.pop("settings", {}))
    except TypeError as error:
        raise ValueError(f"settings: {error}") from None
    return deployment(models, settings, **options)


def run_on_ray(
    models: Mapping[str, NetworkSource],
    settings: ServiceSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    replicas: int | Mapping[str, Any] = 1,
    on_ready: Callable[[str], Any] = lambda address: None,
) -> None:
    """Serve models by Ray Serve until SIGTERM or SIGINT.

    The cluster is that of the environment variable ``RAY_ADDRESS``, or one that is started on this machine.

    Args:
        models, settings, replicas: as for `deployment`.
        host, port, on_ready: as for :func:`.server.run`.
    """
    settings = settings or ServiceSettings()
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own
        signal.signal(number, lambda *_: stopped.set())
    try:
        serve.start(http_options={"host": host, "port": port})
        application = deployment(models, settings, replicas=replicas, cpus=settings.threads)
        serve.run(application, name="gradcam-fast", route_prefix="/")
        on_ready(f"http://{host}:{port}/")
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def ray_instruments(metric: Metric) -> Instrument:
    """An instrument that Ray exports with its own metrics, with the replica as a label."""
    name, labels = f"gradcam_fast_{metric.name}", metric.labels
    if metric.kind == "counter":
        # Ray adds the suffix _total itself.
        counter = ray_metrics.Counter(name.removesuffix("_total"), metric.description, labels)
        return lambda value, **of: counter.inc(value, of)
    if metric.kind == "gauge":
        gauge = ray_metrics.Gauge(name, metric.description, labels)
        return lambda value, **of: gauge.set(value, of)
    histogram = ray_metrics.Histogram(name, metric.description, list(metric.buckets), labels)
    return lambda value, **of: histogram.observe(value, of)


class ModelReplica:
    """A process with all models, which answers queries."""

    async def __init__(self, models: dict[str, NetworkSource], settings: ServiceSettings) -> None:  # type: ignore[misc]  # Ray awaits it
        self._engine = LocalEngine(models, settings, ServiceMetrics(ray_instruments))
        await self._engine.start()
        self._reloads: dict[str, tuple[str, asyncio.Task[None]]] = {}

    async def answer(self, model: str, query: PhotoQuery) -> PhotoAnswer:
        """The answer to one query."""
        try:
            return await self._engine.answer(model, query)
        except ExplanationError as error:  # not all of these can be sent to another process
            raise QueryError(str(error)) from None

    async def describe(self, model: str) -> dict[str, Any]:
        """What clients may want to know of a model."""
        return await self._engine.describe(model)

    async def class_names(self, model: str) -> tuple[str, ...]:
        """The name of each class of a model."""
        return await self._engine.class_names(model)

    async def layers(self, model: str) -> list[dict[str, Any]]:
        """The layers of a model that can be explained."""
        return await self._engine.layers(model)

    async def reload(self, model: str, order: str) -> str:
        """Load a model again from its source, once for each ``order``; the name of this replica.

        Raises:
            RuntimeError: it cannot be loaded; this replica's log has the reason, and the old model goes on.
        """
        if model not in self._reloads or self._reloads[model][0] != order:
            self._reloads[model] = order, asyncio.create_task(self._engine.reload(model))
        try:
            await asyncio.shield(self._reloads[model][1])
        except Exception as error:  # not all of these can be sent to another process
            LOG.error("not reloaded", exc_info=error, extra={"fields": {"model": model}})
            raise RuntimeError(f"{model} cannot be loaded again") from None
        return serve.get_replica_context().replica_id.unique_id


class Ingress:
    """The HTTP application; its queries go to the replicas."""

    def __init__(self, replicas: DeploymentHandle[Any], names: tuple[str, ...], settings: ServiceSettings) -> None:
        self._engine, self._settings = RemoteEngine(replicas, names), settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            {}, self._settings, make_engine=lambda _: self._engine, metrics=ServiceMetrics(ray_instruments)
        )


class RemoteEngine:
    """Answers queries by the replicas behind a handle."""

    def __init__(self, replicas: DeploymentHandle[Any], names: tuple[str, ...]) -> None:
        self._replicas, self.names = replicas, names

    async def start(self) -> None:
        """Nothing: Ray starts the replicas."""

    async def stop(self) -> None:
        """Nothing: Ray stops the replicas."""

    async def answer(self, model: str, query: PhotoQuery) -> PhotoAnswer:
        """The answer to one query."""
        answer: PhotoAnswer = await self._call(lambda: self._replicas.answer.remote(model, query))
        return answer

    async def describe(self, model: str) -> dict[str, Any]:
        """What clients may want to know of a model."""
        facts: dict[str, Any] = await self._call(lambda: self._replicas.describe.remote(model))
        return facts

    async def class_names(self, model: str) -> tuple[str, ...]:
        """The name of each class of a model."""
        names: tuple[str, ...] = await self._call(lambda: self._replicas.class_names.remote(model))
        return names

    async def layers(self, model: str) -> list[dict[str, Any]]:
        """The layers of a model that can be explained."""
        layers: list[dict[str, Any]] = await self._call(lambda: self._replicas.layers.remote(model))
        return layers

    async def reload(self, model: str) -> None:
        """Have each replica load a model again; until its new one is ready, it answers by the old one.

        A call goes to one replica, whichever Ray chooses. So there are calls until every replica has been called.
        """
        if model not in self.names:
            raise QueryError(f"there is no model {model!r}; choose one of {', '.join(self.names)}", 404)
        order, reloaded = uuid.uuid4().hex, set[str]()
        while missing := await asyncio.to_thread(_count_replicas) - len(reloaded):
            if missing < 0:  # replicas have ended since
                break
            calls = [self._call(lambda: self._replicas.reload.remote(model, order)) for _ in range(missing)]
            reloaded.update(await asyncio.gather(*calls))

    @staticmethod
    async def _call(method: Callable[[], Any]) -> Any:
        try:
            return await method()
        except RayTaskError as error:  # what the replica raised
            raise (error.cause or error) from None
        except (RayActorError, BackPressureError) as error:
            raise QueryError("the process that had this photo has ended; send it again", 503) from error


def _count_replicas() -> int:
    """How many replicas of the models answer, of the application of the calling process.

    Raises:
        QueryError: none.
    """
    status = serve.status().applications[serve.get_replica_context().app_name].deployments[_MODELS]
    count = sum(number for state, number in status.replica_states.items() if state in _SERVING)
    if not count:
        raise QueryError("no replica of the models is ready; send the request again", 503)
    return count
