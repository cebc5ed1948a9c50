"""Our packed rows as a data loader of torchtitan."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX

from metamorph.data.conversation import ChatEncoder
from metamorph.data.lanes import Lanes, open_documents
from metamorph.data.opening import open_source
from metamorph.data.packing import PackedRow, TargetCounts
from metamorph.data.skips import check_skip_limit
from metamorph.integrations.torchtitan.start import Start


class PackedRows(BaseDataLoader):
    """The rows of every step, the same as `metamorph train` would have, a row a micro-batch.

    Row l of a step comes from lane l, and process r of n takes the lanes r, r + n, ...: the state
    of each lane is saved under its own name, so that another number of processes can go on.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        start: Annotated[Start | None, tyro.conf.Suppress] = None

    def __init__(self, config: Config, *, dp_world_size: int, dp_rank: int, **unused: Any):
        assert config.start is not None
        run, model = config.start.run, config.start.model.config
        encoder = ChatEncoder(config.start.tokenizer, model.tokens_per_image, model.prompt_images)
        source = open_source(run.data, run.seed, portion="training")
        documents = open_documents(run.data, source, encoder, config.start.encoder)
        rows, workers = run.training.rows_per_step, run.data.workers
        self.lanes = Lanes(documents, model.pad_id, rows, dp_rank, dp_world_size, workers)
        self.run = run

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        step = 0
        while True:
            rows = self.lanes.next_rows()
            counts = TargetCounts.of(rows)
            for row in rows:
                yield {"input": row.token_ids[None], "row": row, "counts": counts}, labels(row)
            step += 1
            if step % self.run.training.log_every == 0:
                check_skip_limit([self.lanes.all_skips()], self.run.data.skip_limit)

    def state_dict(self) -> dict[str, Any]:
        return {f"lane {lane}": state for lane, state in self.lanes.state_dict().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = {name.removeprefix("lane "): state for name, state in state_dict.items()}
        self.lanes.load_state_dict(states)


def labels(row: PackedRow) -> Tensor:
    """Text targets [1, T], as torchtitan counts them; the model reads those of the row itself."""
    found = torch.full_like(row.token_ids, IGNORE_INDEX)
    found[row.text_rows] = row.text_labels
    return found[None]
