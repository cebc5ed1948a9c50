"""One TCP connection, which may not wait for its client without end."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from metamorph.serving.limits import Limits
from metamorph.serving.refusals import Refused


class Connection(H11Protocol):
    """uvicorn's, with an end to clients that send the head of a request byte by byte, and to those
    that take nothing of an answer."""

    def __init__(self, *arguments, limits: Limits, **options):
        super().__init__(*arguments, **options)
        self.limits = limits
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """More than a little of an answer waits for the client."""
        super().pause_writing()
        self._watch_stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall = _stop(self._stall)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._stall = _stop(self._head), _stop(self._stall)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP."""
        body = json.dumps(Refused(400, msg, code="invalid_http").body()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        events = (answer, h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _watch_head(self) -> None:
        """From a request's first byte, or the connection's beginning, to the end of its head."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _stop(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _watch_stall(self, waiting: int) -> None:
        """Looks again after a while; `waiting` bytes have to have become fewer by then."""

        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now < waiting:
                self._watch_stall(now)
            else:
                self.transport.abort()

        self._stall = self.loop.call_later(self.limits.stall_seconds, look)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
