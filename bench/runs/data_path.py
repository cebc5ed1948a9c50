"""A training step from files to optimizer: padded or packed, features live or from the cache."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.providers import Provider
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.runs.ladder import Encoder
from bench.runs.models import SharedWeights, Widths, missing_package, speeds

OPERATION = "data path of a training step"
FRAMES, FRAME_RATE = 8, 4  # of a clip
CLIPS = 4
BATCH = 8  # samples that are padded together
LARGEST_ERROR = 1e-4  # of gradients, relative; cached features are stored in fp32


@dataclass(frozen=True)
class Case(Widths):
    """So many packed rows of toy scenes and short clips, mixed as the paper mixes stills and
    videos. Images are opened, and text is tokenised, in every step."""

    rows: int
    row_length: int
    encoder: Encoder
    name: str = "data-toy"
    quick: bool = False

    def __str__(self) -> str:
        return (
            f"{self.rows} rows of {self.row_length} tokens, toy scenes and clips of {FRAMES} "
            f"frames, {self.layers} layers of {self.hidden}, AdamW"
        )

    def run(self, device: torch.device) -> list[Result]:
        """Verify loss and gradients of every provider, then time steps of the same samples."""
        comparison = Comparison(OPERATION, str(self))
        absence = missing_package()
        with tempfile.TemporaryDirectory() as folder:
            trial = None if absence else _Trial(self, Path(folder), device)
            for provider in PROVIDERS:
                comparison.add(
                    provider.name, partial(_Trial.candidate, trial, provider.method), absence
                )
            results = comparison.results(device)
        return results + speeds(results, trial.tokens if trial else 0, "useful tokens")


def cases(device_type: str) -> list[Case]:
    """A toy for the CPU, whose encoder costs about what it does beside a small language model."""
    if device_type != "cpu":
        return []
    encoder = Encoder(layers=4, heads=2, intermediate=256, image_size=64, patch_size=4)
    widths = {"layers": 4, "hidden": 128, "intermediate": 384, "heads": 4, "key_heads": 2}
    widths |= {"vocabulary": 512, "visual_width": 64}
    return [Case(rows=2, row_length=2048, encoder=encoder, **widths)]


@dataclass(frozen=True)
class Layout:
    """How documents are laid out, and where features come from."""

    packed: bool
    cached: bool


PROVIDERS = (
    Provider("padded to the longest, live", Layout(packed=False, cached=False)),
    Provider("padded to the longest, cached", Layout(packed=False, cached=True)),
    Provider("ours packed, live", Layout(packed=True, cached=False)),
    Provider("ours packed, cached", Layout(packed=True, cached=True)),
)
REFERENCE = PROVIDERS[0].method


def write_mixture(folder: Path) -> Path:
    """Toy scenes, questions about clips, and clips alone, at the paper's shares."""
    from metamorph.data.toy.scenes import render
    from metamorph.data.toy.tasks import make_task

    lines = []
    for clip in range(CLIPS):
        (folder / f"clip{clip}").mkdir()
        for frame in range(FRAMES):
            scene = make_task(clip, frame, "train", {"draw": 1.0}).scene
            render(scene).save(folder / f"clip{clip}" / f"{frame}.png")
        turns = [{"from": "human", "value": "Which way did it move?"},
                 {"from": "gpt", "value": "left"}]  # fmt: skip
        record = {"id": str(clip), "video": f"clip{clip}", "fps": FRAME_RATE}
        lines.append(json.dumps(record | {"conversations": turns}) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines))
    clips = f"path: clips.jsonl, frames_per_second: {FRAME_RATE}"
    (folder / "mixture.yaml").write_text(
        "stills: {weight: 81.3, source: toy_scenes, samples: 100}\n"
        f"video_qa: {{weight: 9.9, family: video_questions, {clips}}}\n"
        f"pure_video: {{weight: 8.8, family: video_frames, {clips}}}\n"
    )
    return folder / "mixture.yaml"


class _Trial:
    """A mixture on disk, its cached features, a model, and what a step should give."""

    def __init__(self, case: Case, folder: Path, device: torch.device):
        from metamorph.config import DataConfig
        from metamorph.data.conversation import ChatEncoder
        from metamorph.data.documents import Documents
        from metamorph.data.encode import encode
        from metamorph.data.features import FeatureFolder
        from metamorph.data.lanes import Lanes
        from metamorph.data.mixture import parts_of
        from metamorph.data.opening import open_source
        from metamorph.data.toy.tokenizer import build_toy_tokenizer
        from metamorph.model.opening import add_image_tokens

        self.case, self.device = case, device
        torch.manual_seed(0)
        self.vision = case.encoder.build(case.visual_width, device)
        tokenizer = build_toy_tokenizer()
        self.pad_id = add_image_tokens(tokenizer)["pad_id"]
        chat = ChatEncoder(tokenizer, self.vision.tokens_per_image)
        source = open_source(DataConfig(source="mixture", path=str(write_mixture(folder))), seed=0)
        encode(parts_of(source), self.vision, folder / "features", "fp32")
        options = source, chat, case.row_length, self.vision.square
        self.live = Documents(*options)
        self.cached = Documents(*options, FeatureFolder(folder / "features"))
        self.rows = self._indices(Lanes(self.live, self.pad_id, case.rows))
        self.tokens = sum(len(self.live.document(i)) for row in self.rows for i in row)
        self.weights = SharedWeights(case, device)
        self.model = self.weights.base
        self.exact = self.weights.results(partial(self._backward, REFERENCE))

    def _indices(self, lanes) -> list[list[int]]:
        """The samples that each lane puts into its first row."""
        lanes.next_rows()
        found = []
        for lane, stream in lanes.streams.items():
            tried = range(lane, stream.next_index, stream.lanes)
            waiting = {index for index, _ in stream.waiting}
            found.append([index for index in tried if index not in waiting])
        return found

    def candidate(self, layout: Layout) -> Candidate:
        backward = partial(self._backward, layout)
        return self.weights.candidate(backward, self.exact, LARGEST_ERROR)

    def _packed_rows(self, layout: Layout) -> Iterator:
        """Reads, opens and lays out the documents of the step."""
        from metamorph.data.packing import pack_row

        documents = self.cached if layout.cached else self.live
        for indices in self.rows:
            row = [documents.document(index) for index in indices]
            if layout.packed:
                yield pack_row(row, self.case.row_length, self.pad_id)
                continue
            for begin in range(0, len(row), BATCH):
                batch = row[begin : begin + BATCH]
                longest = max(map(len, batch))
                padded = [self._padded(document, longest) for document in batch]
                yield pack_row(padded, len(batch) * longest, self.pad_id)

    def _padded(self, document, length: int):
        padding = length - len(document)
        return replace(
            document,
            token_ids=document.token_ids + [self.pad_id] * padding,
            supervised=document.supervised + [False] * padding,
        )

    def _backward(self, layout: Layout) -> Tensor:
        from metamorph.data.packing import TargetCounts
        from metamorph.training.batch import Batch
        from metamorph.training.language_stage import batch_losses

        self.model.vision = self.vision
        rows = list(self._packed_rows(layout))
        counts = TargetCounts.of(rows)
        total = torch.zeros((), device=self.device)
        for row in rows:
            losses, _ = batch_losses(self.model, Batch.of(row, self.vision, self.device), counts)
            loss = losses.text + losses.visual
            loss.backward()
            total += loss.detach()
        return total
