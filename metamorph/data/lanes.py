"""The rows of every optimizer step, the same however many processes share them.

Row l of every step comes from lane l, which packs its own samples. Process r of n takes the lanes
r, r + n, ...: what a step trains on, and in which order samples come, does not depend on n.
"""

import time
from typing import Generic, Protocol, TypeVar

from metamorph.config import DataConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.documents import Documents, DocumentsAhead, DocumentSource
from metamorph.data.features import open_features
from metamorph.data.packing import PackedRow, RowStream
from metamorph.data.skips import Skips, sum_skips
from metamorph.data.sources import Source
from metamorph.errors import UserError
from metamorph.model.vision import VisionEncoder
from metamorph.processes import gather, share_of


class Stream(Protocol):
    """One lane."""

    skips: Skips

    @property
    def used(self) -> int:
        """Samples that are behind it."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


StreamT = TypeVar("StreamT", bound=Stream)


class OwnLanes(Generic[StreamT]):
    """The streams of one process, by the number of their lane, and the source that they share."""

    def __init__(self, source: Source, streams: dict[int, StreamT]):
        self.source, self.streams = source, streams

    def used(self) -> int:
        """Samples that are behind these lanes, of all epochs so far."""
        return sum(stream.used for stream in self.streams.values())

    def skips(self) -> Skips:
        """The unusable samples of these lanes together."""
        return sum_skips(stream.skips for stream in self.streams.values())

    def all_skips(self) -> Skips:
        """Those of all processes together, which all call this."""
        return sum_skips(Skips.of(state) for state in gather(self.skips().state_dict()))

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


class Lanes(OwnLanes[RowStream]):
    """The lanes of one process of `world_size`.

    `rows_per_step`: rows of an optimizer step over all processes, which is the number of lanes.
    `samples`: how many they pack together before they give padding; None for ever more.
    Raises `UserError` if the processes cannot share them evenly.
    """

    def __init__(
        self,
        documents: Documents,
        pad_id: int,
        rows_per_step: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        samples: int | None = None,
    ):
        share_of("training.rows_per_step", rows_per_step, world_size)
        own = range(rank, rows_per_step, world_size)
        self.ahead = None
        ready: DocumentSource = documents
        if workers:
            ready = self.ahead = DocumentsAhead(documents, workers, rows_per_step, len(own))
        super().__init__(
            documents.source,
            {lane: RowStream(ready, pad_id, lane, rows_per_step, samples) for lane in own},
        )
        self.wait_seconds = 0.0  # that `next_rows` has taken so far

    def next_rows(self) -> list[PackedRow]:
        """This process's rows of the next step, in the order of their lanes."""
        started = time.perf_counter()
        rows = [next(stream) for stream in self.streams.values()]
        self.wait_seconds += time.perf_counter() - started
        return rows

    def close(self) -> None:
        """Ends the processes that prepare samples."""
        if self.ahead is not None:
            self.ahead.close()


def open_documents(
    config: DataConfig, source: Source, encoder: ChatEncoder, vision: VisionEncoder
) -> Documents:
    """The samples of a source as lanes pack them, by the other keys of the `data` section.

    Raises `UserError` for cached features that cannot be used.
    """
    features = None
    if config.features:
        features = open_features(config.features, vision, config.verify_features)
    return Documents(source, encoder, config.row_length, vision.square, features, config.too_long)
