"""The server's process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from ..system.progress import say
from .app import make_app
from .service import Service

CLOSING_SECONDS = 120
"""In which clients have to have taken their answers once the server is to end."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on which nobody listens yet; port 0 is any that is free.

    Raises:
        OSError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise OSError(f"host: {host!r} is no name or address of this machine: {error.strerror}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(f"port: {host}:{port} cannot be had: {error.strerror}") from error
    return sock


class _Server(uvicorn.Server):
    """Says when it is ready, and takes SIGTERM and Ctrl-C as the wish to answer what was accepted and end."""

    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], shut: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready, self._shut = ready, shut

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before: dict[signal.Signals, Any] = {}

        def stop(_: int, __: object) -> None:
            for each in before:  # a second one ends the process at once
                signal.signal(each, signal.SIG_DFL)
            if self._loop:
                self._loop.call_soon_threadsafe(self._shut)
            self.should_exit = True

        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) != signal.SIG_IGN:
                before[each] = signal.signal(each, stop)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def run_server(service: Service, sock: socket.socket, *, max_bytes: int) -> None:
    """Serve until SIGTERM or Ctrl-C, and answer what was accepted. Closes the service and the socket."""

    def ready() -> None:
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"swsl: http://{shown}:{port}: {service.runner.info.reason}")

    def shut() -> None:
        say("swsl: closing, once what was accepted is answered")
        service.shut()

    config = uvicorn.Config(
        make_app(service, max_bytes=max_bytes),
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    try:
        _Server(config, ready, shut).run([sock])
    finally:
        sock.close()
        service.close()
