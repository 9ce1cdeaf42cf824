"""Runs the service on this machine, and stops it without losing a request."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from .allocator import use_one_arena
from .app import create_app
from .request_log import LOG, log_as_json
from .settings import ServiceSettings

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from ..pipeline.network_source import NetworkSource

__all__ = ["DrainingServer", "run"]

# Longer than load balancers keep idle connections (60 s), so that it is never the service that closes one in use.
KEEP_ALIVE = 75
# Seconds for a connection that was just taken to send its request.
_LAST_REQUESTS = 0.2


class DrainingServer(uvicorn.Server):
    """A server that takes its time to stop.

    At the first SIGTERM or SIGINT the service says that it is not ready, so that load balancers turn away, and goes on
    answering, with ``Connection: close``. After ``drain`` seconds it takes no new connection, answers every request
    that it has, and ends. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain: float) -> None:
        super().__init__(config)
        self._app, self._drain = app, drain
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; called by the signal."""
        if self._draining:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._app.state.ready = False
        LOG.info("draining", extra={"fields": {"seconds": self._drain}})
        # uvicorn adds these headers to every answer, and makes the list anew from the configuration every second.
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        asyncio.get_running_loop().call_later(self._drain, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, wait for the requests of those just taken, then for all answers."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LAST_REQUESTS)
        await super().shutdown(sockets)


def run(
    models: Mapping[str, NetworkSource],
    settings: ServiceSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_ready: Callable[[str], Any] = lambda address: None,
) -> None:
    """Serve models until SIGTERM or SIGINT; SIGHUP loads them again.

    Args:
        models, settings: as for `create_app`.
        host, port: the address to bind; port 0 takes a free one.
        on_ready: called with the address of the page as soon as requests are answered.

    Raises:
        OSError: the address cannot be bound.
        ValueError, FileNotFoundError, ImportError: a model cannot be loaded.
    """
    settings = settings or ServiceSettings()
    use_one_arena()
    log_as_json()
    app = create_app(models, settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        timeout_keep_alive=KEEP_ALIVE,
        access_log=False,
        log_config=None,
        server_header=False,
    )
    server = DrainingServer(config, app, settings.drain)
    with _bound(host, port) as address:
        asyncio.run(_serve(server, app, address, on_ready))


def _bound(host: str, port: int) -> socket.socket:
    """The address, taken at once; clients are refused until the models are loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        raise OSError(f"port {port} of {host} cannot be used ({error.strerror}); give another --port") from None
    return bound


async def _serve(server: DrainingServer, app: FastAPI, address: socket.socket, on_ready: Callable[[str], Any]) -> None:
    # Here, because uvicorn ends the process if the application cannot start.
    await app.state.engine.start()
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def reload(name: str) -> None:
        try:
            await app.state.engine.reload(name)
        except Exception as error:  # the old model goes on
            LOG.error("not reloaded", exc_info=error, extra={"fields": {"model": name}})

    def reload_all() -> None:
        for name in app.state.engine.names:
            task = loop.create_task(reload(name))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, reload_all)
    serving = loop.create_task(server.serve(sockets=[address]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        host, port = address.getsockname()[:2]
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    await serving
