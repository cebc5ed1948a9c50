"""The model with its losses as a model of torchtitan, and how its weights are spread."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torchtitan.distributed import ParallelDims
from torchtitan.protocols.model import BaseModel

from metamorph.data.packing import PackedRow, TargetCounts
from metamorph.errors import UserError
from metamorph.integrations.torchtitan.start import Start
from metamorph.model.precision import autocast
from metamorph.training.batch import Batch
from metamorph.training.language_stage import StepLosses
from metamorph.training.parallel import (
    copy_local_rows,
    precision_policy,
    recompute,
    shard,
    sum_gradients,
)


class PackedRowModel(BaseModel):
    """A MetaMorph down to its losses, of one packed row a call.

    Built on no device, as torchtitan asks: weights stay in the files that `Start` has mapped until
    `init_states`, where each process reads its own share. The encoder is frozen and no part of it.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        start: Annotated[Start | None, tyro.conf.Suppress] = None

        def update_from_config(self, *, config: Any, **unused: Any) -> None:
            """Nothing: the run file has been read."""

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """Parameters, and operations of a token: six for each of a matrix, no attention."""
            sizes = [parameter.numel() for parameter in model.parameters()]
            matrices = [p.numel() for p in model.parameters() if p.ndim == 2]
            return sum(sizes), 6 * sum(matrices)

    def __init__(self, config: Config):
        super().__init__()
        assert config.start is not None
        self.start, self.run = config.start, config.start.run
        model = config.start.model
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.weights = [tensors]  # in a list: no parameters of this module
        model.to(device="meta", dtype=torch.get_default_dtype())
        # pyrefly: ignore[no-matching-overload]  its stub lacks a memory format alone
        model.to(memory_format=torch.contiguous_format)  # FSDP shards no other
        self.losses = StepLosses(model, self.run.training.visual_loss)

    @property
    def model(self):
        return self.losses.model

    def verify_module_protocol(self) -> None:
        """Nothing: parts of ours are plain modules, which `init_states` fills."""

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """Copies this process's share of the weights that the run starts from."""
        copy_local_rows(self.model, self.weights.pop())
        self.start.encoder.to(self.start.device)

    def forward(self, tokens: Tensor, row: PackedRow, counts: TargetCounts) -> Tensor:
        """The loss of one row, its share of the step's: text plus weighted visual, a scalar.

        Args:
            tokens: [1, T], the ids of the row, on the device that computes.
            row: from `PackedRows`, on the CPU.
            counts: targets of the whole step, over all processes.
        """
        training, encoder = self.run.training, self.start.encoder
        batch = Batch.of(row, encoder, tokens.device)
        with autocast(training.precision, tokens.device):
            batch = replace(batch, features=batch.visual_features(encoder), pixels=None)
            text, visual, _, _ = self.losses(batch, counts)
        return text + training.visual_coefficient * visual


def parallelize(
    model: PackedRowModel, *, parallel_dims: ParallelDims, training: Any, **unused: Any
) -> PackedRowModel:
    """FSDP2 or HSDP by torchtitan's mesh, each block a unit, as `metamorph train` does it."""
    for name in ("tp", "cp", "ep"):
        if getattr(parallel_dims, name) > 1:
            raise UserError(f"parallelism: {name} is {getattr(parallel_dims, name)}, expected 1")
    run = model.run.training
    for block in model.model.language.model.layers:
        recompute(block, run.activation_checkpointing)
        if run.compile:
            block.compile(fullgraph=True)
    axes = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
    shard(
        model,
        model.model,
        mesh=parallel_dims.get_mesh(axes),
        mp_policy=precision_policy(run.precision),
    )
    sum_gradients(model)
    return model
