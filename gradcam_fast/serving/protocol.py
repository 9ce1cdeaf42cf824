"""KServe's v1 protocol: the models, and ``:predict`` and ``:explain`` for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from . import answers
from .bodies import Instances, Style, queries_of
from .engine import Engine
from .queries import QueryError

if TYPE_CHECKING:
    from .metrics import ServiceMetrics
    from .queries import PhotoAnswer, PhotoQuery, Verb
    from .settings import ServiceSettings

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["KServe v1"])
Result = TypeVar("Result")

# Of pictures: their longest side, as on the command line.
LONGEST = 1600
# Of a client that has gone; no one reads it, but the log shows it.
CLIENT_CLOSED_REQUEST = 499
TIMEOUT_HEADER = "x-request-timeout"


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


Served = Annotated[Engine, Depends(_engine)]

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Instances.model_json_schema()},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


@router.get("")
async def list_models(engine: Served) -> dict[str, list[str]]:
    """The names of the models."""
    return {"models": list(engine.names)}


@router.get("/{model}")
async def show_model(model: str, engine: Served) -> dict[str, Any]:
    """Whether a model is ready, and what it is."""
    return {"name": model, "ready": True, **await engine.describe(model)}


@router.get("/{model}/layers")
async def list_layers(model: str, engine: Served) -> dict[str, Any]:
    """The layers that can be explained, one for each stage."""
    return {"layers": await engine.layers(model)}


@router.get("/{model}/classes")
async def list_classes(model: str, engine: Served) -> dict[str, Any]:
    """The name of each class."""
    return {"classes": list(await engine.class_names(model))}


@router.post("/{model}:predict", openapi_extra=_BODY)
async def predict(model: str, request: Request) -> Response:
    """The most probable classes of photos."""
    return await _answered(model, request, "predict")


@router.post("/{model}:explain", openapi_extra=_BODY)
async def explain(model: str, request: Request, style: Annotated[Style, Query()]) -> Response:
    """The most probable classes of photos, and heatmaps of some.

    By ``Accept``: JSON, or of one photo ``image/png`` (an overlay of one class) or ``application/x-npy``.
    """
    return await _answered(model, request, "explain", style)


async def _answered(model: str, request: Request, verb: Verb, style: Style | None = None) -> Response:
    engine, metrics = _engine(request), request.app.state.metrics
    status = 500
    start = time.perf_counter()
    known = model if model in engine.names else ""  # a label of the metrics: nothing that clients make up
    try:
        offered = (answers.JSON, answers.PNG, answers.NPY) if verb == "explain" else (answers.JSON,)
        kind = answers.accepted(request.headers.get("accept", ""), offered)
        if not known:
            await engine.describe(model)  # refuses it
        settings: ServiceSettings = request.app.state.settings
        timeout = _timeout(request, settings)
        longest = LONGEST if kind == answers.PNG else None
        if style is not None:
            answers.check_colormap(style.colormap)

        async def read_and_answer() -> list[PhotoAnswer] | None:
            nonlocal start
            queries = await queries_of(request, verb, longest=longest, max_photos=settings.max_photos)
            start = time.perf_counter()
            return await _unless_gone(request, _answer_all(engine, model, queries))

        try:
            found = await asyncio.wait_for(read_and_answer(), timeout)
        except asyncio.TimeoutError:
            raise QueryError("the request took longer than its deadline; send fewer photos at once", 504) from None
        if found is None:
            status = CLIENT_CLOSED_REQUEST
            return Response(status_code=status)
        response = await _encoded(found, kind, verb, known, metrics, style)
        status = response.status_code
        return response
    except ClientDisconnect:  # in the middle of its body
        status = CLIENT_CLOSED_REQUEST
        return Response(status_code=status)
    except Exception as error:
        status = getattr(error, "status", getattr(error, "status_code", 422 if isinstance(error, ValueError) else 500))
        raise
    finally:
        metrics.measure("requests_total", 1, model=known, verb=verb, status=str(status))
        metrics.measure("request_seconds", time.perf_counter() - start, model=known, verb=verb)


async def _answer_all(engine: Engine, model: str, queries: list[PhotoQuery]) -> list[PhotoAnswer]:
    """The answers to all queries; if one fails, the others are given up."""
    tasks = [asyncio.ensure_future(engine.answer(model, query)) for query in queries]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of ``work``; None, and the work is given up, if the client closes its connection meanwhile."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout(request: Request, settings: ServiceSettings) -> float:
    """The seconds that a request may take: those of the service, or fewer if the client says so."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return settings.deadline
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise QueryError(f"{TIMEOUT_HEADER}: {text!r} is no number of seconds", 400)
    return min(seconds, settings.deadline)


async def _encoded(
    found: list[PhotoAnswer], kind: str, verb: Verb, model: str, metrics: ServiceMetrics, style: Style | None
) -> Response:
    with metrics.stage(model, "encode"):
        if kind == answers.JSON:
            return answers.json_answer(found, explained=verb == "explain")
        if kind == answers.PNG and style is not None:
            return await asyncio.to_thread(answers.picture_answer, found, style.colormap, style.alpha)
        return await asyncio.to_thread(answers.array_answer, found)


def error_response(status: int, sentence: str) -> JSONResponse:
    """An error in the protocol's form."""
    return JSONResponse({"error": sentence}, status)
