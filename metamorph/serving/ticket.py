"""One request on its way through the server."""

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

from metamorph.serving.limits import Places
from metamorph.serving.refusals import busy

SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(eq=False)
class Ticket:
    """What the guard knows of a request: its id, when it came, by when it has to be answered, and
    the places of answers that it holds."""

    id: str
    seconds: float  # that it may take
    places: Places
    held: int = 0
    bytes: int = 0  # of its body
    arrived: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.arrived

    @property
    def left(self) -> float:
        """Seconds until it has to be answered."""
        return self.arrived + self.seconds - time.monotonic()

    def hold(self, number: int) -> None:
        """Takes so many places in all. Raises `Refused` where there are no more."""
        if number > self.held:
            if not self.places.take(number - self.held):
                raise busy("as many requests as the server takes wait already; try again later")
            self.held = number

    def give_back(self) -> None:
        self.places.give_back(self.held)
        self.held = 0


def ticket_of(request: Request) -> Ticket:
    return request.scope["ticket"]


def request_id(scope: Scope) -> str:
    """The client's own, if it is one; else a new one."""
    given = header(scope, b"x-request-id")
    return given if SANE_ID.fullmatch(given) else uuid.uuid4().hex


def header(scope: Scope, name: bytes) -> str:
    """The value of a header, empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
