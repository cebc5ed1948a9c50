"""How much one request, and all of them together, may ask of the server."""

from dataclasses import dataclass

from metamorph.config.data_keys import MAX_PIXELS
from metamorph.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What is beyond them is refused before any work. Sizes in bytes, times in seconds."""

    body: int = 32 * 2**20
    bodies: int = 512 * 2**20  # of all requests at hand
    messages: int = 256  # of a conversation
    characters: int = 400_000  # of its text
    pictures: int = 16  # of a conversation
    pixels: int = MAX_PIXELS  # of one picture, before it is decoded
    tokens: int = 1024  # of one answer, those of its pictures included
    choices: int = 8  # answers to one request
    queue: int = 64  # requests that wait beside those that are answered
    seconds: float = 300.0  # from a request's first byte to its answer's last
    body_seconds: float = 30.0  # until a body is there
    header_seconds: float = 10.0  # until the head of a request is there
    idle_seconds: float = 30.0  # a connection without a request stays open
    stall_seconds: float = 30.0  # a reader takes nothing of what was sent

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name not in ("queue", "pictures")):
                raise UserError(f"limit {name}: expected more than 0, got {value}")


DEFAULT_LIMITS = Limits()


class Places:
    """So many of something for all requests together, such as answers under way and in the queue.
    On the event loop alone."""

    def __init__(self, total: int):
        self.total = self.free = total

    def take(self, number: int) -> bool:
        """Whether there were so many; then they are taken until they are given back."""
        if number > self.free:
            return False
        self.free -= number
        return True

    def give_back(self, number: int) -> None:
        self.free += number
