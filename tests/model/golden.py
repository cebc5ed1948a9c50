"""The golden toy model and its cases, read from tests/data (numbers of the official classes)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from metamorph.model import LanguageConfig, MetaMorph, MetaMorphConfig
from metamorph_kernels import Intervals, key_intervals

DATA = Path(__file__).parents[1] / "data"
PLACEHOLDER = -200


@cache
def expectations(name: str = "vpit_tiny") -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


@cache
def tensors(name: str = "vpit_tiny") -> dict[str, Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def our_name(official: str) -> str:
    """The MetaMorph parameter behind an official weight or gradient name."""
    part, _, rest = official.partition(".")
    if part in ("projector", "vision_head"):
        return f"{part}.linear_{int(rest[0]) // 2 + 1}.{rest[2:]}"
    return f"language.{official}"


def golden_model(grid: int = 4) -> MetaMorph:
    expected = expectations()
    ids = expected["token_ids"]
    config = MetaMorphConfig(
        language=LanguageConfig.from_dict(expected["config"]),
        visual_width=expected["config"]["visual_width"],
        grid=grid,
        image_start_id=ids["image_start"],
        image_end_id=ids["image_end"],
        eos_ids=ids["eos"],
        pad_id=ids["pad"],
    )
    model = MetaMorph(config)
    weights = {
        our_name(name.removeprefix("weights.")): tensor.clone()
        for name, tensor in tensors().items()
        if name.startswith("weights.")
    }
    model.load_state_dict(weights)
    return model


@dataclass
class PackedCase:
    """All samples of a case end to end in one row; indices are in packed coordinates."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    intervals: Intervals
    features: Tensor  # [images, 16, C]
    visual_positions: Tensor  # [Nv]
    text_rows: Tensor  # the states that predict text_labels
    text_labels: Tensor
    visual_rows: Tensor  # the states that predict visual_targets
    visual_targets: Tensor  # rows of the flattened features

    @property
    def inputs(self) -> tuple:
        return (
            self.token_ids,
            self.positions,
            self.intervals,
            self.features,
            self.visual_positions,
        )


def pack_case(name: str) -> PackedCase:
    token_ids, positions, visual_positions, lengths = [], [], [], []
    text_rows, text_labels, visual_rows, visual_targets = [], [], [], []
    empty = torch.zeros(0, 16, expectations()["config"]["visual_width"])
    for sample in expectations()["cases"][name]["samples"]:
        first = len(token_ids)
        slot_of = {}
        expanded = []
        images = 0
        for token_id in sample["input_ids"]:
            if token_id != PLACEHOLDER:
                expanded.append(token_id)
                continue
            slots = range(len(visual_positions), len(visual_positions) + 16)
            slot_of.update(zip(range(len(expanded), len(expanded) + 16), slots, strict=True))
            visual_positions += range(first + len(expanded), first + len(expanded) + 16)
            expanded += [0] * 16
            images += 1
        assert len(expanded) == sample["expanded_length"] and images == len(sample["images"])
        for target in sample["text_target_positions"]:
            text_rows.append(first + target - 1)
            text_labels.append(expanded[target])
        for target in sample["visual_target_positions"]:
            visual_rows.append(first + target - 1)
            visual_targets.append(slot_of[target])
        token_ids += expanded
        positions += range(len(expanded))
        lengths.append(len(expanded))
    return PackedCase(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        intervals=key_intervals(lengths),
        features=tensors().get(f"case_{name}.image_features", empty),
        visual_positions=torch.tensor(visual_positions, dtype=torch.int64),
        text_rows=torch.tensor(text_rows, dtype=torch.int64),
        text_labels=torch.tensor(text_labels, dtype=torch.int64),
        visual_rows=torch.tensor(visual_rows, dtype=torch.int64),
        visual_targets=torch.tensor(visual_targets, dtype=torch.int64),
    )
