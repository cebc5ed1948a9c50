"""What the lanes of a process have in common, whatever they give."""

from typing import Generic, Protocol, TypeVar

from metamorph.data.skips import Skips, sum_skips
from metamorph.errors import UserError


class Stream(Protocol):
    """One lane."""

    skips: Skips

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


StreamT = TypeVar("StreamT", bound=Stream)


class OwnLanes(Generic[StreamT]):
    """The streams of one process, by the number of their lane."""

    def __init__(self, streams: dict[int, StreamT]):
        self.streams = streams

    def skips(self) -> Skips:
        """The unusable samples of these lanes together."""
        return sum_skips(stream.skips for stream in self.streams.values())

    def state_dict(self) -> dict[str, dict]:
        """The state of each lane of this process, by its number. JSON-able."""
        return {str(lane): stream.state_dict() for lane, stream in self.streams.items()}

    def load_state_dict(self, states: dict[str, dict]) -> None:
        """Takes its own from the states of all lanes, whichever processes they were saved by.

        Raises `SampleError` if the data changed since, `UserError` for other lanes.
        """
        for lane, stream in self.streams.items():
            if str(lane) not in states:
                raise UserError(f"resume: the checkpoint has no state of data lane {lane}")
            stream.load_state_dict(states[str(lane)])
