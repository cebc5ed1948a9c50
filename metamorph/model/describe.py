"""A model in text: how many parameters are trained, in which arithmetic each layer computes."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby

from torch import nn

from metamorph.model.precision import Float8Layers

PART_NAMES = {"vision": "encoder", "vision_head": "vision head"}
IN_BLOCK = re.compile(r"(?<=\.layers\.)\d+")


def describe_parameters(module: nn.Module, stage: str) -> str:
    """A table of how many parameters of each part are trained and frozen."""
    lines = [f"{'parameters':<16}{'trained':>16}{'frozen':>16}"]
    for name, part in module.named_children():
        counts = {True: 0, False: 0}
        for parameter in part.parameters():
            counts[parameter.requires_grad] += parameter.numel()
        lines.append(f"  {PART_NAMES.get(name, name):<14}{counts[True]:>16,}{counts[False]:>16,}")
    if stage == "align":
        lines.append("  of the input rows, only those of added tokens move")
    return "\n".join(lines)


def describe_precision(precision: str, float8: Float8Layers | None = None) -> str:
    """The arithmetic of the step, and in fp8 of each layer."""
    if float8 is None:
        return f"precision {precision}"
    lines = ["precision fp8: float8 products in these layers, bfloat16 autocast elsewhere"]
    by = ", ".join(filter(None, (float8.backend, float8.recipe)))
    lines += [f"  {names}: float8 ({by})" for names in compact(float8.converted)]
    by_reason = defaultdict(list)
    for name, reason in float8.left.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        lines += [f"  {name}: left as in bf16, {reason}" for name in compact(names)]
    return "\n".join(lines)


def compact(names: Iterable[str]) -> list[str]:
    """Layer names with like blocks and like projections joined.

    `language.model.layers.0-15.self_attn.{q,k,v,o}_proj` stands for 64 layers.
    """
    blocks = defaultdict(list)  # name without its block: the blocks that have it
    for name in names:
        blocks[IN_BLOCK.sub("#", name)] += map(int, IN_BLOCK.findall(name))
    leaves = defaultdict(list)  # parent, and its blocks: the projections they share
    for name, numbers in blocks.items():
        parent, _, leaf = name.rpartition(".")
        leaves[parent, tuple(sorted(numbers))].append(leaf)
    joined = []
    for (parent, numbers), found in leaves.items():
        leaf = found[0]
        if len(found) > 1:
            leaf = "{" + ",".join(name.removesuffix("_proj") for name in found) + "}_proj"
        parent = parent.replace("#", _ranges(numbers))
        joined.append(f"{parent}.{leaf}" if parent else leaf)
    return joined


def _ranges(numbers: tuple[int, ...]) -> str:
    """`(0, 1, 2, 5)` as `0-2,5`."""
    runs = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        runs.append(str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}")
    return ",".join(runs)
