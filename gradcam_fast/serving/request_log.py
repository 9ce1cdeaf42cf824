"""A line of JSON in the log for each request, with an id that is also in the answer; never what a photo shows."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LOG", "JsonLines", "RequestLog", "log_as_json", "request_id"]

LOG = logging.getLogger("gradcam_fast.serving")
ID_HEADER = "x-request-id"
# What a client may call its request; anything else could forge lines of the log.
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

request_id: ContextVar[str] = ContextVar("request_id", default="")


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, message, request id, the fields given, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            values["request_id"] = identity
        values |= getattr(record, "fields", {})
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)


def log_as_json() -> None:
    """Write what the service and uvicorn log to standard error, as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("gradcam_fast", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    # RequestLog has a line of its own for each request.
    logging.getLogger("uvicorn.access").disabled = True


class RequestLog:
    """Gives each request an id (its ``X-Request-ID``, or a new one), and logs how it was answered.

    What is raised below is logged, and answered with status 500 and the id alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(ID_HEADER, "")
        identity = given if _ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(identity)
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = identity
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # a fault of the service: its log has the reason, the answer has not
            LOG.error("failed", exc_info=error)
            if not status:
                reason = f"the service failed; its log has the reason of request {identity}"
                await JSONResponse({"error": reason}, 500)(scope, receive, send_with_id)
        finally:
            milliseconds = round(1000 * (time.perf_counter() - start), 1)
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "ms": milliseconds}
            quiet = scope["path"].startswith("/v2/health/") or scope["path"] == "/metrics"
            LOG.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})
            request_id.reset(token)
