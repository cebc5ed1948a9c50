"""A server on a free port of this machine, in a thread of the test's own process."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from fastapi import FastAPI

from metamorph.serving.server import Server, bound

PATIENCE = 20.0  # seconds until it must have begun


@contextlib.contextmanager
def running(app: FastAPI, grace: float = 0.0) -> Iterator[str]:
    """The URL under which `app` answers."""
    with serving(app, grace) as (url, _):
        yield url


@contextlib.contextmanager
def serving(app: FastAPI, grace: float = 0.0) -> Iterator[tuple[str, Server]]:
    """The same, and the server itself."""
    listener, ready = bound("127.0.0.1", 0), threading.Event()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)  # a stall is soon seen
    server = Server(app, grace=grace, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.stop()
        thread.join()
