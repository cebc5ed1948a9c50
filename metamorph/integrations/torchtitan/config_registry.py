"""What torchtitan finds behind `--module metamorph.integrations.torchtitan --config run`."""

import os
from typing import Any

from torchtitan.protocols.model_spec import ModelSpec

from metamorph.config.reading import load_config
from metamorph.config.shipped import find_config
from metamorph.errors import UserError
from metamorph.integrations.torchtitan.loss import ShareOfLoss
from metamorph.integrations.torchtitan.model import PackedRowModel, parallelize
from metamorph.integrations.torchtitan.rows import PackedRows
from metamorph.integrations.torchtitan.settings import sections
from metamorph.integrations.torchtitan.start import Start, StartTokenizer
from metamorph.integrations.torchtitan.trainer import MetaMorphTrainer

RUN_FILE = "METAMORPH_RUN"  # torchtitan calls `run` before it reads its own command line


def run() -> MetaMorphTrainer.Config:
    """The run of the file that the environment variable METAMORPH_RUN names, as torchtitan's
    configuration. Raises `UserError` for a file that torchtitan's trainer cannot follow."""
    path = os.environ.get(RUN_FILE)
    if not path:
        raise UserError(f"{RUN_FILE}: expected the path of a run file, got nothing")
    config = load_config(find_config(path))
    start = Start(config)
    model = ModelSpec(
        name="metamorph",
        flavor=config.stage,
        model=PackedRowModel.Config(start=start),
        parallelize_fn=parallelize,
        pipelining_fn=None,  # torchtitan then refuses to cut the model
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )
    ours: dict[str, Any] = {
        "model_spec": model,
        "tokenizer": StartTokenizer.Config(),
        "dataloader": PackedRows.Config(start=start),
        "loss": ShareOfLoss.Config(),
    }
    return MetaMorphTrainer.Config(**ours, **sections(config))
