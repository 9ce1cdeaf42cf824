"""Which requests are let in: as many, and as large, as this process can answer at a time; read before anything else.

A request is counted before its body is read, so that a crowd of uploads is never in memory at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Admission", "BodyTooLarge"]


class BodyTooLarge(HTTPException):
    """The body of a request is larger than the service takes."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"the body has more than {most:,} bytes; send fewer photos at once, or smaller ones")


class Admission:
    """Refuses a request when too many are being answered (503), and a body that is too large (413).

    Only requests with a body count: health checks and metrics are always answered.

    Args:
        max_requests, max_bytes, max_body: as in `ServiceSettings`.

    Attributes:
        requests, bytes: how many are being answered, and how many bytes their bodies may have together.
    """

    def __init__(self, app: ASGIApp, *, max_requests: int, max_bytes: int, max_body: int) -> None:
        self._app, self._max_requests, self._max_bytes, self._max_body = app, max_requests, max_bytes, max_body
        self.requests = self.bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        # A body without a length, sent in chunks, may become as large as any.
        length = Headers(scope=scope).get("content-length", "")
        size = int(length) if length.isascii() and length.isdigit() else self._max_body
        if size > self._max_body:
            # The body is not read: the connection cannot be used again.
            await _refusal(413, BodyTooLarge(self._max_body).detail, {"Connection": "close"})(scope, receive, send)
            return
        if self.requests >= self._max_requests or self.bytes + size > self._max_bytes:
            reason = "the service is answering as many requests as it can; try again in a moment"
            await _refusal(503, reason, {"Retry-After": "1"})(scope, receive, send)
            return
        self.requests += 1
        self.bytes += size
        try:
            await self._app(scope, _limited(receive, self._max_body), send)
        finally:
            self.requests -= 1
            self.bytes -= size


def _refusal(status: int, reason: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def _limited(receive: Receive, most: int) -> Receive:
    """Messages of a request until its body has more than ``most`` bytes."""
    received = 0

    async def next_message() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > most:
                raise BodyTooLarge(most)
        return message

    return next_message
