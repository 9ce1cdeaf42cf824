"""Who may use the service: everybody on this machine, or everybody who has the key."""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["KEY_VARIABLE", "LOOPBACK_NAMES", "BearerKey", "SecurityHeaders", "check_exposure", "is_loopback"]

KEY_VARIABLE = "GRADCAM_FAST_API_KEY"
# A browser on this machine may be led to the service under another name (DNS rebinding); it then sends that name.
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
# What shows nothing of models or photos. The page asks for the key itself.
_OPEN_PATHS = ("/v2/health/", "/static/")
# The page runs its own scripts only, talks to its own service only, and stands in no other page's frame.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, api_key: str | None, *, no_auth: bool) -> None:
    """Refuse to be reached from other machines without a key, unless that is said aloud.

    Raises:
        ValueError: ``host`` is reached from other machines, there is no key, and ``no_auth`` is False.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError(f"{KEY_VARIABLE} is empty; give it a key, or unset it")
    if not is_loopback(host) and api_key is None and not no_auth:
        raise ValueError(
            f"--host: everybody who reaches {host} could use the service; set {KEY_VARIABLE} to a key that clients "
            "send as 'Authorization: Bearer KEY', or give --no-auth"
        )


class BearerKey:
    """Lets requests in that carry the key; health checks and the page's own files need none."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, self._expected):
                refusal = JSONResponse(
                    {"error": "the key is missing or wrong; send it as 'Authorization: Bearer KEY'"},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path == "/" or path.startswith(_OPEN_PATHS)


class SecurityHeaders:
    """Adds the headers that keep browsers from guessing types, and the page from anything but its own service."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        if scope["path"] == "/":
            headers.append((b"content-security-policy", _PAGE_POLICY.encode()))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)
