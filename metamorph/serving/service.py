"""What every route works with, and how it waits for answers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from metamorph.errors import UserError
from metamorph.generation.events import Event, Finished, ImageStarted, TextPiece
from metamorph.serving.engine import EngineThread, Question
from metamorph.serving.inbox import Inbox
from metamorph.serving.limits import Limits
from metamorph.serving.metrics import Metrics
from metamorph.serving.pictures import PictureReader
from metamorph.serving.refusals import GONE, MISTAKE, Refused, failed, invalid
from metamorph.serving.served import Served
from metamorph.serving.ticket import Ticket, ticket_of

logger = logging.getLogger("metamorph.serving")
BEAT_SECONDS = 15.0  # of silence, after which a comment keeps a proxy from hanging up
BEAT = b": waiting\n\n"
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    served: Served
    engine: EngineThread
    limits: Limits
    pictures: PictureReader
    metrics: Metrics

    async def ask(self, questions: Sequence[Question], param: str) -> Inbox:
        """Waits until they are in the engine's queue. Raises `Refused` if they cannot be, for what
        the field `param` says."""
        inbox = self.engine.ask(questions)
        try:
            await inbox.accepted
        except UserError as error:
            said = str(error).replace("max_new_tokens", "max_tokens")  # as requests name it
            raise invalid(param, said) from error
        except BaseException:
            self.engine.close(inbox)
            raise
        return inbox

    async def events(self, inbox: Inbox, ticket: Ticket) -> AsyncIterator[tuple[int, Event] | None]:
        """What happens, by number of the answer, until all are finished; None after some silence.

        Raises `Refused` for an answer that failed and one that takes too long.
        """
        begun = False
        while inbox.unfinished:
            if ticket.left <= 0:
                message = f"the answer was not ready within {ticket.seconds:g} seconds"
                raise Refused(504, message, code="timeout")
            try:
                async with asyncio.timeout(min(ticket.left, BEAT_SECONDS)):
                    come = await inbox.take()
            except TimeoutError:
                yield None
                continue
            for number, event in come:
                if not begun and isinstance(event, TextPiece | ImageStarted):
                    begun = True
                    self.metrics.first_token_seconds.observe(ticket.elapsed)
                if isinstance(event, Finished):
                    self.metrics.finished(event.usage)
                    if event.reason in ("error", "cancelled"):
                        raise failed(event.error or "the answer was cancelled", "answer_failed")
                yield number, event


class EventStream(StreamingResponse):
    """Server-sent events of the answers in an inbox, which is closed with it however it ends.

    What goes wrong is the last event but `end`, of the kind `error` where that is not empty.
    """

    def __init__(
        self,
        service: Service,
        events: AsyncIterator[bytes],
        inbox: Inbox,
        *,
        error: str = "",
        end: bytes = b"",
    ):
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        whole = self._whole(events, error, end)
        super().__init__(whole, media_type="text/event-stream", headers=headers)
        self.service, self.inbox = service, inbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.engine.close(self.inbox)

    async def _whole(
        self, events: AsyncIterator[bytes], error: str, end: bytes
    ) -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield event
        except Exception as problem:
            if not isinstance(problem, Refused):
                logger.exception("a stream failed")
                problem = failed(MISTAKE)
            self.service.metrics.refuse(problem)
            yield sse(problem.body(), error)
        yield end


def sse(data: dict[str, Any], event: str = "") -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless its client goes away or its time is over: then it is cancelled and
    `Refused` raised."""
    ticket = ticket_of(request)
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait(
            {working, gone}, timeout=max(ticket.left, 0), return_when=asyncio.FIRST_COMPLETED
        )
        if working.done():
            return working.result()
        if gone.done():
            raise Refused(GONE, "the client has gone", code="client_gone")
        message = f"the answer was not ready within {ticket.seconds:g} seconds"
        raise Refused(504, message, code="timeout")
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.wait({working, gone})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
