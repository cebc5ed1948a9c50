"""What stands before every route: who may ask, how much, and that every answer has the same form.

In this order: the name that the client calls the server by, its token, whether the server still
takes requests, the kind and size of the body, and whether there is a place in the queue. Nothing of
a body is read before all of that is right.
"""

import asyncio
import hmac
import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metamorph.errors import printable
from metamorph.serving.engine import EngineThread
from metamorph.serving.limits import Limits, Places
from metamorph.serving.metrics import Metrics
from metamorph.serving.refusals import GONE, MISTAKE, Refused, busy, failed, unavailable
from metamorph.serving.ticket import Ticket, header, request_id

logger = logging.getLogger("metamorph.serving")

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANSWERING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/images/generations",
        "/v1/metamorph/seen",
        "/v1/metamorph/redraw",
    }
)
GUARDED = ("/v1/", "/metrics")  # by the token; the page asks for it, a balancer looks at /healthz
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


@dataclass
class Door:
    """Who is let in, and whether anybody is."""

    token: str = ""  # none is asked for
    names: Collection[str] = ()  # that the server may be called by; any where there are none
    stopping: bool = False
    inside: set[Ticket] = field(default_factory=set)  # requests that are being answered


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        limits: Limits,
        engine: EngineThread,
        metrics: Metrics,
    ):
        self.app, self.door, self.limits = app, door, limits
        self.engine, self.metrics = engine, metrics
        self.places = Places(engine.status.slots + limits.queue)
        self.room = Places(limits.bodies)  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server; it has no websockets
            await self.app(scope, receive, send)
            return
        ticket = Ticket(request_id(scope), self.limits.seconds, self.places)
        scope["ticket"] = ticket
        status = GONE

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*HEADERS, (b"x-request-id", ticket.id.encode())]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        self.door.inside.add(ticket)
        try:
            await self._answer(scope, receive, sent, ticket)
        except Refused as refused:
            await self.metrics.refuse(refused)(scope, receive, sent)
        except Exception:
            logger.exception("request %s failed", ticket.id)
            if status != GONE:
                raise  # the answer has begun: it can only be cut off
            refused = failed(MISTAKE)
            await self.metrics.refuse(refused)(scope, receive, sent)
        finally:
            self.door.inside.remove(ticket)
            ticket.give_back()
            self.room.give_back(ticket.bytes)
            self._record(scope, status, ticket)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ticket: Ticket) -> None:
        self._check_client(scope)
        if scope["method"] == "POST" and scope["path"] in ANSWERING:
            self._check_state()
            self._check_head(scope)
            ticket.hold(1)
            body = await self._read(receive, ticket)
            receive = _replay(body, receive)
        await self.app(scope, receive, send)

    def _check_client(self, scope: Scope) -> None:
        if self.door.names:
            name = header(scope, b"host").lower()
            if name.rpartition(":")[2].isdecimal():
                name = name.rpartition(":")[0]
            if name not in self.door.names:
                message = (
                    f"this server is not called {name!r}; names that it may be called by are given "
                    f"by --server-name"
                )
                raise Refused(403, message, code="host_not_allowed")
        if self.door.token and scope["path"].startswith(GUARDED):
            kind, _, given = header(scope, b"authorization").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.door.token.encode())
            if kind.lower() != "bearer" or not right:
                message = "expected the server's token: Authorization: Bearer TOKEN"
                headers = {"www-authenticate": "Bearer"}
                raise Refused(401, message, code="invalid_api_key", headers=headers)

    def _check_state(self) -> None:
        if self.door.stopping:
            raise unavailable("the server is stopping", "stopping")
        if self.engine.broken:
            raise unavailable("the engine has failed", "engine_failed")

    def _check_head(self, scope: Scope) -> None:
        kind = header(scope, b"content-type").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = f"expected Content-Type: application/json, got {kind[:100] or 'none'!r}"
            raise Refused(415, message, code="unsupported_media_type")
        length = header(scope, b"content-length")
        if length.isdecimal() and int(length) > self.limits.body:
            raise self._too_large()

    async def _read(self, receive: Receive, ticket: Ticket) -> bytes:
        """The body, which may come in pieces of any number and may say nothing of its size. It
        takes room until the request is answered."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(GONE, "the client has gone")
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > self.limits.body:
                        raise self._too_large()
                    if not self.room.take(len(piece)):
                        raise busy("the requests at hand take all the room there is; try later")
                    ticket.bytes += len(piece)
                    body += piece
                    more = message.get("more_body", False)
        except TimeoutError as error:
            message = f"the body did not come within {self.limits.body_seconds:g} seconds"
            headers = {"connection": "close"}
            raise Refused(408, message, code="body_too_slow", headers=headers) from error
        return bytes(body)

    def _too_large(self) -> Refused:
        message = f"the body has more than {self.limits.body} bytes"
        return Refused(413, message, code="body_too_large")

    def _record(self, scope: Scope, status: int, ticket: Ticket) -> None:
        path = scope["path"]
        route = path if path in ANSWERING else getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(ticket.elapsed)
        logger.info(
            "%s %s %s %.3f s %s",
            scope["method"], printable(path), status, ticket.elapsed, ticket.id,
        )  # fmt: skip


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
