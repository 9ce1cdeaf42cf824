"""The FastAPI application: models, health, metrics, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .. import __version__
from ..exceptions import ExplanationError
from . import protocol
from .admission import Admission
from .answers import accepted
from .engine import Engine, LocalEngine
from .metrics import ServiceMetrics, prometheus_instruments
from .queries import QueryError
from .request_log import RequestLog
from .security import BearerKey, SecurityHeaders
from .settings import ServiceSettings

if TYPE_CHECKING:
    from ..pipeline.network_source import NetworkSource

__all__ = ["create_app"]

STATIC = Path(__file__).parent / "static"


def create_app(
    models: Mapping[str, NetworkSource],
    settings: ServiceSettings | None = None,
    *,
    make_engine: Callable[[ServiceMetrics], Engine] | None = None,
    metrics: ServiceMetrics | None = None,
) -> FastAPI:
    """The service as an ASGI application; its models are loaded when it starts.

    Args:
        models: where the models come from, by the name that clients use.
        settings: limits and choices; None takes the defaults.
        make_engine: what answers the queries; None answers them in this process.
        metrics: where the service measures; None: the Prometheus metrics at ``/metrics``.

    Raises:
        ValueError: no model, or a name that cannot stand in an address.
    """
    settings = settings or ServiceSettings()
    registry = CollectorRegistry()
    metrics = metrics or ServiceMetrics(prometheus_instruments(registry))
    engine = make_engine(metrics) if make_engine else LocalEngine(models, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        app.state.ready = True
        yield
        app.state.ready = False
        await engine.stop()

    app = FastAPI(
        title="gradcam_fast",
        version=__version__,
        description="Predictions and Grad-CAM heatmaps of photos, from one forward pass.",
        lifespan=lifespan,
    )
    app.state.engine, app.state.settings, app.state.metrics = engine, settings, metrics
    app.state.registry, app.state.ready = registry, False
    app.include_router(protocol.router)
    _add_service_routes(app)
    _add_error_handlers(app)
    # The last one added sees a request first.
    app.add_middleware(
        Admission, max_requests=settings.max_requests, max_bytes=settings.max_bytes, max_body=settings.max_body
    )
    if settings.api_key is not None:
        app.add_middleware(BearerKey, key=settings.api_key)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.allowed_hosts))
    app.add_middleware(RequestLog)
    app.add_middleware(SecurityHeaders)
    return app


def _add_service_routes(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page for browsers; for KServe's clients whether the service lives."""
        if accepted(request.headers.get("accept", ""), ("application/json", "text/html")) == "text/html":
            return FileResponse(STATIC / "index.html")
        return JSONResponse({"status": "alive"})

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> dict[str, bool]:
        """Whether the service runs."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["health"])
    async def ready(request: Request) -> JSONResponse:
        """Whether the service takes requests: its models are loaded, and it is not about to stop."""
        is_ready: bool = request.app.state.ready
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @app.get("/v2/models/{model}/ready", tags=["health"])
    async def model_ready(model: str, request: Request) -> dict[str, Any]:
        """Whether a model is ready."""
        await request.app.state.engine.describe(model)
        return {"name": model, "ready": True}

    @app.post("/v2/repository/models/{model}/load", tags=["models"])
    async def reload(model: str, request: Request) -> dict[str, Any]:
        """Load a model again from its source, while the old one goes on answering."""
        await request.app.state.engine.reload(model)
        return {"name": model, "ready": True}

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        """The metrics, in Prometheus's text format."""
        return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(QueryError)
    async def query_error(_: Request, error: QueryError) -> Response:
        response = protocol.error_response(error.status, str(error))
        if error.status == 503:
            response.headers["Retry-After"] = "1"
        return response

    @app.exception_handler(ExplanationError)
    async def explanation_error(_: Request, error: ExplanationError) -> Response:
        return protocol.error_response(422, " ".join(str(error).split()))

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return protocol.error_response(400, f"{first['loc'][-1]}: {first['msg'][0].lower()}{first['msg'][1:]}")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        response = protocol.error_response(error.status_code, error.detail)
        response.headers.update(error.headers or {})
        return response
