"""Operations and memory of a step of one GPU, computed and in text."""

from dataclasses import dataclass

from metamorph.config import RunConfig
from metamorph.costs.flops import (
    FORMULA,
    Flops,
    Workload,
    encoder_flops,
    language_flops,
    repeated_flops,
    trained_parts,
)
from metamorph.costs.memory import (
    CHECKPOINTING,
    Widths,
    activation_bytes,
    peak_bytes,
    state_bytes,
    working_bytes,
)
from metamorph.costs.sharding import Unit
from metamorph.model.unified import MetaMorph

GIBI = 2**30


@dataclass(frozen=True)
class Costs:
    """Of the `rows` that one GPU computes in a step; memory in bytes."""

    work: Workload
    flops: dict[str, Flops]
    encoder: Flops
    repeated: float
    states: dict[str, float]
    working: dict[str, float]
    activations: dict[str, dict[str, float]]  # by kind of activation checkpointing
    checkpointing: str

    @property
    def model_flops(self) -> float:
        """Without the encoder, and without what is computed twice."""
        return sum(part.total for part in self.flops.values())

    @property
    def total_bytes(self) -> float:
        return peak_bytes(self.states, self.working, self.activations[self.checkpointing])


def step_costs(
    config: RunConfig, model: MetaMorph, units: list[Unit], row: Workload, rows: int
) -> Costs:
    """What a step of `rows` rows like `row` costs one GPU that holds `units`."""
    training, trained = config.training, trained_parts(model)
    widths = Widths.of(training, any(unit.is_sharded for unit in units))
    vision = None if config.data.features else model.vision
    work = row * rows
    flops = language_flops(model.config, work, trained)
    encoder = Flops(0)
    if vision is not None:
        encoder = encoder_flops(vision, work.images)
    activations = {
        mode: activation_bytes(
            model.config, vision, row, mode, widths, trained,
            training.visual_loss,
        )
        for mode in CHECKPOINTING
    }  # fmt: skip
    mode = training.activation_checkpointing
    return Costs(
        work, flops, encoder, repeated_flops(flops, mode), state_bytes(units, training),
        working_bytes(units, training, rows), activations, mode,
    )  # fmt: skip


def describe_flops(costs: Costs, rows: int) -> str:
    """A table in teraflops: forward, backward, and both, of the rows of a step on one GPU."""
    what = "1 row" if rows == 1 else f"{rows} rows"
    lines = [f"{f'teraflops of {what}':<24}{'forward':>12}{'backward':>12}{'both':>12}"]

    def line(name: str, part: Flops) -> str:
        figures = (part.forward, part.backward, part.total)
        return f"  {name:<22}" + "".join(f"{figure / 1e12:>12.4g}" for figure in figures)

    lines += [line(name, part) for name, part in costs.flops.items()]
    both = [sum(getattr(p, key) for p in costs.flops.values()) for key in ("forward", "backward")]
    lines.append(line("language model, all", Flops(*both)))
    lines.append(line("encoder, apart", costs.encoder))
    lines.append(
        f"  besides, computed twice: {costs.repeated / 1e12:.4g} (activation_checkpointing "
        f"{costs.checkpointing}, attention's backward); no part of MFU"
    )
    return "\n".join([*lines, "formulas:", FORMULA])


def describe_decoder_memory(parts: dict[str, float]) -> str:
    """A table in GiB for one GPU of what `decoder_bytes` says."""
    lines = [f"  {name:<36}{size / GIBI:>10.3f}" for name, size in parts.items()]
    return "\n".join(["memory of a GPU, estimated (GiB), without activations", *lines])


def describe_memory(costs: Costs) -> str:
    """A table in GiB for one GPU; activations with and without checkpointing."""

    def line(name: str, size: float) -> str:
        return f"  {name:<36}{size / GIBI:>10.3f}"

    chosen = costs.activations[costs.checkpointing]
    lines = ["memory of a GPU, estimated (GiB)"]
    lines += [line(name, size) for name, size in (costs.states | costs.working).items()]
    for mode, activations in costs.activations.items():
        here = " *" if mode == costs.checkpointing else ""
        lines.append(line(f"activations of blocks, {mode}{here}", activations["blocks"]))
    lines += [line(name, chosen[name]) for name in ("projector and heads", "logits of a chunk")]
    lines.append(line("encoder (before the rest)", chosen["encoder"]))
    lines.append(line("peak", costs.total_bytes))
    lines.append("  * training.activation_checkpointing; without CUDA's own, NCCL's and fragments")
    return "\n".join(lines)
