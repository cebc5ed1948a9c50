"""The rows of a step: one lane gives one of them, whoever computes it.

A step takes one row from each lane. Process r of W owns the lanes r, r + W, ...: how many processes
share a run changes neither the rows nor their order.
"""

from dataclasses import dataclass

from metamorph.data.conversation import ChatEncoder, Sample
from metamorph.data.packing import PackedRow, RowStream
from metamorph.data.sources import Source


@dataclass(frozen=True)
class LaneSource:
    """Every ``lanes``-th sample of a source, from sample ``lane`` on."""

    source: Source
    lane: int
    lanes: int

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        return self.source.sample(index * self.lanes + self.lane)


class Lanes:
    """The lanes of one process, out of ``lanes`` in all."""

    def __init__(
        self, source: Source, encoder: ChatEncoder, row_length: int, pad_id: int,
        lanes: int, rank: int = 0, world_size: int = 1,
    ):  # fmt: skip
        self.streams = {
            lane: RowStream(LaneSource(source, lane, lanes), encoder, row_length, pad_id)
            for lane in range(rank, lanes, world_size)
        }

    def next_rows(self) -> list[PackedRow]:
        """The next row of each own lane, in the order of lanes."""
        return [next(stream) for stream in self.streams.values()]

    def skipped(self) -> dict[str, tuple[int, str]]:
        """Per cause: how many samples own lanes skipped, and the message of the first one."""
        found: dict[str, tuple[int, str]] = {}
        for stream in self.streams.values():
            for cause, count in stream.skipped.items():
                before, example = found.get(cause, (0, stream.examples[cause]))
                found[cause] = (before + count, example)
        return found

    def state_dict(self) -> dict[str, dict]:
        """The state of each own lane, by its number as text."""
        return {str(lane): stream.state_dict() for lane, stream in self.streams.items()}

    def load_state_dict(self, states: dict[str, dict]) -> None:
        """Takes up the states of own lanes; ``states`` holds those of all."""
        for lane, stream in self.streams.items():
            stream.load_state_dict(states[str(lane)])
