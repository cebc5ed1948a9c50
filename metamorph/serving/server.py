"""The application on its sockets, and how it stops: finish or refuse, and never hang."""

import functools
import logging
import math
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from metamorph.errors import UserError
from metamorph.serving.connection import Connection
from metamorph.serving.guard import Door
from metamorph.serving.refusals import unavailable
from metamorph.serving.service import Service
from metamorph.signals import ECHO_SECONDS

logger = logging.getLogger("metamorph.serving")
LAST_SECONDS = 2  # to write what the end of a request is


class Server(uvicorn.Server):
    """Serves `app` until it is asked to stop.

    From then on new requests are refused with 503, so that a balancer sends them elsewhere, and
    those at hand have `grace` seconds to finish; then they end with an error. A second signal stops
    at once. `ready` is called when requests are taken.
    """

    def __init__(self, app: FastAPI, *, grace: float, ready: Callable[[], None] = lambda: None):
        service: Service = app.state.service
        limits = service.limits
        protocol: Any = functools.partial(Connection, limits=limits)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=math.ceil(limits.idle_seconds),
                timeout_graceful_shutdown=LAST_SECONDS,
            )
        )
        self.door: Door = app.state.door
        self.engine = service.engine
        self.grace, self.ready = grace, ready
        self.asked_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Of SIGTERM and SIGINT."""
        if self.asked_at is None:
            self.stop()
        elif time.monotonic() - self.asked_at >= ECHO_SECONDS:
            self.should_exit = self.force_exit = True

    def stop(self) -> None:
        """Takes no more requests and ends after those at hand; may be called from any thread."""
        self.asked_at, self.door.stopping = time.monotonic(), True

    async def on_tick(self, counter: int) -> bool:
        if self.asked_at is not None and not self.should_exit:
            over = time.monotonic() - self.asked_at >= self.grace
            self.should_exit = over or not self.door.inside
            if self.should_exit:
                logger.info("stopping, %d requests are not finished", len(self.door.inside))
                self.engine.end_all(unavailable("the server has stopped", "stopping"))
        return await super().on_tick(counter)


def bound(host: str, port: int) -> socket.socket:
    """A socket of this address, on which nothing is taken yet. Raises `UserError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}, port {port}: {reason}") from error
    return found


def log_to_stderr() -> None:
    """A line for each request, and what went wrong."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
