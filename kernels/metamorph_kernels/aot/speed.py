"""A model, made of its machine code, of how fast a kernel is on an H100. Nothing was measured.

`python -m metamorph_kernels.aot.speed` prints it for a configuration of each kind. Of one pass
through the innermost loop, with as many blocks as fit an SM, it counts the clocks that each unit
is busy: tensor cores, issue slots, the special function unit (MUFU), shared memory for operands of
products and for what TMA brings, the L2 cache for that too, HBM for what has to come from there.
Units work side by side, so the slowest binds; but where a single block waits for each product at
once, what it does between them adds to them. Of a warp-specialised kernel it counts the passes of
all consumers: they fill each other's waits, but for what one of them does without a product of its
own in flight.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from metamorph_kernels.aot.building import Resources, compilations, compile_ahead
from metamorph_kernels.aot.judging import fitting
from metamorph_kernels.aot.machine_code import Stretch
from metamorph_kernels.architectures import WARP_SIZE, WARPS_OF_A_GROUP, capability
from metamorph_kernels.compilation import Compilation

SMS = 132
HERTZ = 1.83e9
FLOPS = {False: 4096, True: 8192}  # of an SM in a clock, by whether numbers have 8 bits
ISSUED = 4  # instructions of warps in a clock, one by each quarter of an SM
MUFU_LANES = 16
SHARED_BYTES = 128  # of a clock: 32 banks of 4 bytes
L2_BYTES = 5120 / SMS  # of a clock: 80 slices of 64 bytes
HBM_BYTES = 3.35e12 / HERTZ / SMS
REACHED = 0.82  # of this model, by kernels of this structure whose speed is public
REACHED_BY_CONSUMERS = 0.70  # by FlashAttention-3, head dim 128: 661 to 667 TFLOP/s


@dataclass(frozen=True)
class Entry:
    """A configuration to model. `reads_hbm`: what TMA brings is read once, by one block.

    `steps`: passes for each tile of the result, whose epilogue nothing hides if only one block
    fits an SM. `useful`: the share of its FLOPs that the operation is said to have.
    """

    kernel: str
    configuration: str
    reads_hbm: bool = False
    steps: int = 0
    useful: float = 1.0


# `pool_backward` is left out: its work stands behind a branch, and `Stretch` leaves out what only
# some passes execute.
ENTRIES = (
    Entry("attention_forward", "bf16 D=64 causal group 4 128x128"),
    Entry("attention_forward", "bf16 D=128 causal group 4 128x128"),
    Entry("attention_forward_gluon", "bf16 D=64 causal group 4 pack 4 128x128"),
    Entry("attention_forward_gluon", "bf16 D=128 causal group 4 pack 4 128x128"),
    # Of seven products in the two passes of the backward, five are needed.
    Entry("attention_query_gradient", "bf16 D=64 causal group 4 128x128", useful=5 / 7),
    Entry("attention_key_value_gradient", "bf16 D=64 causal group 4 64x128", useful=5 / 7),
    Entry("attention_query_gradient", "bf16 D=128 causal group 4 128x64", useful=5 / 7),
    Entry("attention_key_value_gradient", "bf16 D=128 causal group 4 64x128", useful=5 / 7),
    Entry("attention_forward_fp8", "bf16 out D=64 causal group 4 128x128"),
    Entry("attention_forward_fp8", "bf16 out D=128 causal group 4 128x128"),
    Entry("prefill_forward", "bf16 D=64 group 4 128x128"),
    Entry("prefill_forward", "bf16 D=128 group 4 128x128"),
    Entry("decode_split", "bf16 D=128 group 4 64 keys 4 splits", reads_hbm=True),
    Entry("decode_join", "bf16 D=128 64 splits"),
    Entry("gelu_forward", "bf16 by 8"),
    Entry("gelu_backward", "bf16 by 8 activation bias"),
    Entry("float8_product", "forward bias bf16 256x128x128", steps=4096 // 128),
    Entry("cosine_forward", "bf16 C=1152 gradient mean"),
    Entry("cosine_scale", "bf16 C=1152"),
    Entry("scale", "bf16"),
    Entry("cross_entropy", "bf16 gradient any V"),
    Entry("pool_forward", "bf16 C=1152 27x27 to 8x8"),
    Entry("float8_rows", "bf16 to fp8e4nv C<=4096"),
    Entry("float8_column_maxima", "bf16 32x128"),
    Entry("float8_columns", "bf16 to fp8e4nv 128x64"),
    Entry("float8_head_maxima", "bf16 D=128"),
    Entry("float8_heads", "bf16 D=128"),
)


@dataclass(frozen=True)
class Clocks:
    """Of one pass of all blocks of an SM, by unit; `epilogue` is a pass's share of it.

    `exposed`: what a consumer of a warp-specialised kernel makes the tensor cores wait.
    """

    tensor: float
    issue: float
    mufu: float
    shared: float
    l2: float
    hbm: float
    epilogue: float
    waits: bool
    exposed: float = 0.0

    @property
    def total(self) -> float:
        """What the pass takes."""
        if self.waits:
            return max(self.tensor + max(self.issue, self.mufu), self.shared, self.l2, self.hbm)
        return max(self._units().values()) + self.epilogue

    @property
    def bound(self) -> str:
        """What binds, in words."""
        units = self._units()
        slowest = max(units, key=units.__getitem__)
        if self.waits and slowest in ("tensor", "issue", "mufu"):
            return f"tensor + {'mufu' if self.mufu > self.issue else 'issue'}"
        return f"{slowest} + epilogue" if self.epilogue > 0 else slowest

    def _units(self) -> dict[str, float]:
        names = ("tensor", "issue", "mufu", "shared", "l2", "hbm")
        units = {name: getattr(self, name) for name in names}
        return units | {"tensor": self.tensor + self.exposed}


def clocks(entry: Entry, case: Compilation, used: Resources) -> Clocks:
    """The model of one compiled configuration."""
    inner, blocks = stretch_of(used), fitting(case, used)
    groups = working_groups(case, used)
    warps = groups * WARPS_OF_A_GROUP
    tiles, threads = moved(case, used)
    alone = blocks * inner.consumers == 1
    epilogue = warps * inner.outside / ISSUED / entry.steps if entry.steps and alone else 0.0
    return Clocks(
        tensor=groups * inner.flops / FLOPS[inner.is_eight_bit],
        issue=warps * inner.instructions / ISSUED,
        mufu=warps * inner.exponentials * WARP_SIZE / MUFU_LANES,
        shared=(groups * inner.operand_bytes + tiles) / SHARED_BYTES,
        l2=tiles / L2_BYTES,
        hbm=(threads + tiles * entry.reads_hbm) / HBM_BYTES,
        epilogue=epilogue,
        waits=alone and inner.waits_at_once,
        exposed=_exposed(case, inner) if inner.consumers > 1 else 0.0,
    )


def working_groups(case: Compilation, used: Resources) -> float:
    """The warp groups of an SM that run the innermost loop: all but those of producers."""
    groups = case.num_warps / WARPS_OF_A_GROUP
    return fitting(case, used) * stretch_of(used).consumers * groups


def _exposed(case: Compilation, inner: Stretch) -> float:
    """Clocks that one consumer takes for what it does without a product of its own in flight."""
    issue = case.num_warps * inner.instructions / ISSUED
    mufu = case.num_warps * inner.exponentials * WARP_SIZE / MUFU_LANES
    share = 1 - inner.overlapped / inner.arithmetic if inner.arithmetic else 0.0
    return share * max(issue, mufu)


def moved(case: Compilation, used: Resources) -> tuple[int, int]:
    """Bytes that TMA brings and that threads load and store in a pass of all blocks of an SM."""
    inner, blocks = stretch_of(used), fitting(case, used)
    warps = int(working_groups(case, used) * WARPS_OF_A_GROUP)
    return blocks * (inner.tma_bytes or 0), warps * inner.moved_bytes


def expected(entry: Entry, case: Compilation, used: Resources) -> str:
    """TFLOP/s of a kernel of products; of one that moves bytes, its share of a copy's speed."""
    inner, model = stretch_of(used), clocks(entry, case, used)
    if entry.reads_hbm or not inner.products:
        return f"{model.hbm / model.total:.0%} of a copy"
    rate = working_groups(case, used) * inner.flops / model.total * SMS * HERTZ / 1e12
    reached = REACHED if inner.consumers == 1 else REACHED_BY_CONSUMERS
    return f"{reached * entry.useful * rate:.0f} TFLOP/s"


def stretch_of(used: Resources) -> Stretch:
    """The innermost loop, which machine code that could be read has."""
    if used.stretch is None:
        raise ValueError(f"machine code that cannot be modelled: {used.hazards}")
    return used.stretch


def table(entries: Iterable[Entry] = ENTRIES) -> list[str]:
    """The model as a table in Markdown, a line for each entry."""
    wanted = {(entry.kernel, entry.configuration): entry for entry in entries}
    lines = [
        "| kernel | configuration | blocks an SM | instructions | products | exponentials "
        "| bytes: TMA + threads | tensor | issue | MUFU | shared | L2 | HBM | epilogue | binds "
        "| expected (model) |",
        "|---|---|" + "---:|" * 12 + "---|---|",
    ]
    for case in compilations():
        entry = wanted.pop((case.kernel.__name__, case.configuration), None)
        if entry is None:
            continue
        used = compile_ahead(case, capability("sm_90"))
        inner, model = stretch_of(used), clocks(entry, case, used)
        units = (
            model.tensor, model.issue, model.mufu, model.shared, model.l2, model.hbm,
            model.epilogue,
        )  # fmt: skip
        cells = [
            f"`{entry.kernel}`", entry.configuration, f"{fitting(case, used)}",
            f"{inner.instructions}", f"{inner.products}", f"{inner.exponentials}",
            "{} + {}".format(*moved(case, used)),
            *(f"{unit:.0f}" for unit in units), model.bound, expected(entry, case, used),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    if wanted:
        raise ValueError(f"no such configurations: {sorted(wanted)}")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
    sys.exit()
