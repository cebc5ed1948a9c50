"""What a run would do, in text: everything up to its first step, and nothing written.

metamorph train configs/toy/instruct.yaml --dry-run
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import count, groupby
from textwrap import indent

from torch import nn

from metamorph.config import RunConfig
from metamorph.data.packing import PackedRow
from metamorph.model.precision import Float8Layers
from metamorph.training.checkpoint import load_checkpoint
from metamorph.training.costs import describe_flops, describe_memory, step_costs
from metamorph.training.flops import Workload
from metamorph.training.loop import Stage
from metamorph.training.run_folder import find_checkpoint, resolve_device
from metamorph.training.sharding import units

PART_NAMES = {"vision": "encoder", "vision_head": "vision head"}
SHOWN = ("first row", "second row")
IN_BLOCK = re.compile(r"(?<=\.layers\.)\d+")


def dry_run(config: RunConfig, open_stage: Callable[[RunConfig], Stage]) -> str:
    """Opens a run as training would, at its checkpoint if it resumes, and describes it.

    Raises ``UserError`` for whatever would stop the run before its first step.
    """
    checkpoint = find_checkpoint(config)
    stage = open_stage(config)
    step = 0
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, stage.module, stage.optimizer)
        stage.load_state_dict(state["stage"])
        step = state["step"]
    training, device = config.training, resolve_device(config.device)
    head = (
        f"stage {config.stage} on {device}, step {step} to {training.steps}\n"
        f"  a dry run: nothing is trained, nothing is written to {config.output}"
    )
    parts = [head, describe_parameters(stage.module, config.stage)]
    if config.stage == "decoder":
        parts.append(f"precision {training.precision}")
    else:
        parts.append(describe_precision(training.precision, stage.float8))
        rows = stage.lanes.next_rows()
        mean = Workload.mean(rows, stage.module.config.tokens_per_image)
        costs = step_costs(config, stage.module, units(stage.module), mean, len(rows))
        parts += [describe_flops(costs, len(rows)), describe_memory(costs)]
        for title, row in zip(SHOWN, rows, strict=False):
            parts.append(describe_row(title, row, stage.tokenizer))
    return "\n\n".join(parts)


def describe_parameters(module: nn.Module, stage: str) -> str:
    """A table of how many parameters of each part are trained and frozen."""
    lines = [f"{'parameters':<16}{'trained':>16}{'frozen':>16}"]
    for name, part in module.named_children():
        counts = {True: 0, False: 0}
        for parameter in part.parameters():
            counts[parameter.requires_grad] += parameter.numel()
        lines.append(f"  {PART_NAMES.get(name, name):<14}{counts[True]:>16,}{counts[False]:>16,}")
    if stage == "align":
        lines.append("  of the token tables, only the two image rows move")
    return "\n".join(lines)


def describe_precision(precision: str, float8: Float8Layers | None) -> str:
    """The arithmetic of the step, and in fp8 of each layer."""
    if float8 is None:
        return f"precision {precision}"
    lines = ["precision fp8: float8 products in these layers, bfloat16 autocast elsewhere"]
    lines += [f"  {names}: float8 ({float8.backend})" for names in compact(float8.converted)]
    by_reason = defaultdict(list)
    for name, reason in float8.left.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        lines += [f"  {name}: left as in bf16, {reason}" for name in compact(names)]
    return "\n".join(lines)


def compact(names: Iterable[str]) -> list[str]:
    """Layer names with like blocks and like projections joined.

    ``language.model.layers.0-15.self_attn.{q,k,v,o}_proj`` stands for 64 layers.
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
    """``(0, 1, 2, 5)`` as ``0-2,5``."""
    runs = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        runs.append(str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}")
    return ",".join(runs)


def describe_row(title: str, row: PackedRow, tokenizer) -> str:
    """A packed row as text, document by document: pictures in brackets, targets in « »."""
    length = len(row.token_ids)
    images = len(row.images if row.features is None else row.features)
    lines = [
        f"{title}: {len(row.sample_ids)} documents and {images} pictures in "
        f"{row.used} of {length} tokens",
        f"  « » marks what is learned: {len(row.text_rows)} text tokens to say, "
        f"{len(row.visual_rows)} visual tokens to draw",
    ]
    ids = row.token_ids.tolist()
    learned = {at + 1 for rows in (row.text_rows, row.visual_rows) for at in rows.tolist()}
    visual = set(row.visual_positions.tolist())
    pictures = iter(row.images)  # none where their features are cached
    numbers = count(1)

    def show(is_picture: bool, places: list[int]) -> str:
        if is_picture:
            image = next(pictures, None)
            size = "cached" if image is None else f"{image.width} x {image.height}"
            return f"[picture {next(numbers)}: {size}, {len(places)} tokens]"
        return tokenizer.decode([ids[at] for at in places], clean_up_tokenization_spaces=False)

    start = 0
    for number, (sample, tokens) in enumerate(
        zip(row.sample_ids, row.document_lengths, strict=False), start=1
    ):  # padding is a last document without a sample
        text = ""
        for is_learned, run in groupby(range(start, start + tokens), learned.__contains__):
            shown = "".join(
                show(kind, [*places]) for kind, places in groupby(run, visual.__contains__)
            )
            text += f"«{shown}»" if is_learned else shown
        start += tokens
        lines += ["", f"document {number}: {sample}, {tokens} tokens", indent(text, "    ")]
    return "\n".join(lines)
