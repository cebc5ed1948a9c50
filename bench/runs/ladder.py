"""A training step from padded and eager to what `metamorph` does, one thing more on each rung."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.comparison import Comparison
from bench.harness.documents import IMAGE_TOKENS, SyntheticRow, packed_row
from bench.harness.providers import Provider, compiler_absence
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.runs.models import TOY, SharedWeights, Widths, masked_attention, missing_package, speeds
from bench.runs.training_step import LARGEST_ERROR, planned, step_flops
from metamorph_kernels.losses.cross_entropy import IGNORED

OPERATION = "ladder of a training step"


@dataclass(frozen=True)
class Encoder:
    """A frozen SigLIP, by default so400m at 384 pixels. Its width is the visual width."""

    layers: int = 27
    heads: int = 16
    intermediate: int = 4304
    image_size: int = 384
    patch_size: int = 14

    def build(self, width: int, device: torch.device) -> nn.Module:
        from transformers import SiglipVisionConfig

        from metamorph.model.siglip import SiglipEncoder

        config = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        return SiglipEncoder(config, grid=8).to(device)


@dataclass(frozen=True)
class Case(Widths):
    """The documents of one packed row, through an encoder and a model."""

    tokens: int
    seed: int = 0  # of the documents
    precision: str = "bf16"
    encoder: Encoder = Encoder()
    quick: bool = False

    @property
    def name(self) -> str:
        return f"ladder-{self.tokens}-{self.layers}"

    @property
    def row(self) -> SyntheticRow:
        return packed_row(self.tokens, "spans", self.seed)

    def __str__(self) -> str:
        padded = sum(len(lengths) * max(lengths) for lengths in padded_batches(self.row.lengths))
        return (
            f"{self.tokens} tokens of {len(self.row.lengths)} documents, {padded} tokens when "
            f"padded, {self.layers} layers of {self.hidden}, {self.precision}, AdamW"
        )

    def run(self, device: torch.device) -> list[Result]:
        """Verify loss and gradients of every rung beside float32, then time whole steps."""
        comparison = Comparison(OPERATION, str(self))
        absence = missing_package()
        trial = None if absence else _Trial(self, device)
        for rung in RUNGS:
            make = partial(_Trial.candidate, trial, rung.method)
            comparison.add(rung.name, make, absence or rung.absence(device))
        results = comparison.results(device, trial.flops if trial else None, "TFLOP/s")
        return results + speeds(results, self.tokens, "tokens")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a toy in which nothing that a rung saves is for free."""
    if device_type == "cpu":
        encoder = Encoder(layers=4, heads=4, intermediate=64, image_size=192, patch_size=12)
        # Few heads and a wide MLP, or a toy would spend all its time on the dense mask.
        toy = TOY | {"heads": 2, "key_heads": 1, "intermediate": 256, "vocabulary": 1024}
        return [Case(1024, seed=3, precision="fp32", encoder=encoder, **toy)]
    return [Case(8192, layers=4)]


@dataclass(frozen=True)
class Rung:
    """What a step does; where nothing is said: padded rows, a dense mask, both heads at every
    token, the encoder in every step."""

    packed: bool = False
    routed: bool = False
    intervals: bool = False
    cached: bool = False
    compiled: bool = False
    float8: bool = False

    def absence(self, device: torch.device) -> str | None:
        return compiler_absence(device) if self.compiled else None


def _ladder() -> Iterator[Provider[Rung]]:
    rung = Rung()
    yield Provider("padded, eager", rung)
    for name, added in (
        ("ours packed", "packed"),
        ("ours + routed losses", "routed"),
        ("ours + interval attention", "intervals"),
        ("ours + cached features", "cached"),
        ("ours + compiled", "compiled"),
        ("ours + fp8", "float8"),
    ):
        rung = replace(rung, **{added: True})
        yield Provider(name, rung, rung.absence)


RUNGS = list(_ladder())
REFERENCE = Rung(packed=True, cached=True)  # in plain PyTorch


@dataclass(frozen=True)
class Part:
    """Documents that run together: a `Batch` of rows of equal length, one after another."""

    batch: object
    features: Tensor  # [images, 64, C], cached
    mask: Tensor  # [rows, 1, tokens, tokens]

    @property
    def labels(self) -> Tensor:
        """Of every token, as most training loops have them."""
        batch = self.batch
        labels = torch.full_like(batch.token_ids, IGNORED)
        return labels.index_copy(0, batch.text_rows, batch.text_labels)


def packed(batch, features: Tensor) -> Part:
    """One row under a dense mask of its documents."""
    start, end = batch.intervals.row_start[:, None], batch.intervals.row_end[:, None]
    key = torch.arange(len(start), device=start.device)
    return Part(batch, features, ((start <= key) & (key < end))[None, None])


def padded(batch, features: Tensor) -> Iterator[Part]:
    """The same documents, each padded to the longest of its batch."""
    device, begin = features.device, 0
    for lengths in padded_batches(batch.intervals.document_lengths):
        rows, longest, end = len(lengths), max(lengths), begin + sum(lengths)
        sizes = torch.tensor(lengths, device=device)
        first = torch.arange(rows, device=device).mul(longest).repeat_interleave(sizes)
        places = first + batch.positions[begin:end]  # of each token among the padded ones
        texts, visuals, inputs = (
            (begin <= indices) & (indices < end)
            for indices in (batch.text_rows, batch.visual_rows, batch.visual_positions)
        )
        earlier = int((batch.visual_positions < begin).sum())  # features of earlier batches
        images = slice(earlier // IMAGE_TOKENS, (earlier + int(inputs.sum())) // IMAGE_TOKENS)
        token = torch.arange(longest, device=device)
        token_ids = batch.token_ids.new_zeros(rows * longest)
        part = replace(
            batch,
            pixels=batch.pixels[images],
            token_ids=token_ids.index_copy(0, places, batch.token_ids[begin:end]),
            positions=token.repeat(rows),
            visual_positions=places[batch.visual_positions[inputs] - begin],
            text_rows=places[batch.text_rows[texts] - begin],
            text_labels=batch.text_labels[texts],
            visual_rows=places[batch.visual_rows[visuals] - begin],
            visual_targets=batch.visual_targets[visuals] - earlier,
        )
        mask = (token <= token[:, None]) & (token < sizes[:, None, None])  # [rows, query, key]
        yield Part(part, features[images], mask[:, None])
        begin = end


def padded_batches(lengths: tuple[int, ...]) -> list[list[int]]:
    """Documents in their order, as many at a time as padded have no more tokens than the row."""
    batches = [[]]
    for length in lengths:
        together = [*batches[-1], length]
        if len(together) * max(together) > sum(lengths):
            batches.append([length])
        else:
            batches[-1] = together
    return batches


class _Trial:
    """Weights, an encoder, the documents in both layouts, and the results in float32."""

    def __init__(self, case: Case, device: torch.device):
        self.case, self.device = case, device
        self.weights = SharedWeights(case, device)
        self.encoder = case.encoder.build(case.visual_width, device)
        _, batch, self.counts = planned(case.row, case, device)
        images = len(batch.visual_positions) // IMAGE_TOKENS
        side = self.encoder.image_size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(images, 3, side, side, generator=generator).to(device)
        with torch.no_grad():
            features = self.encoder(pixels)
        batch = replace(batch, pixels=pixels)
        self.packed, self.padded = [packed(batch, features)], list(padded(batch, features))
        self.flops = step_flops(case.row, case, batch)
        self.exact = self.weights.results(
            partial(self._backward, self.weights.base, REFERENCE, "fp32")
        )

    def candidate(self, rung: Rung) -> Candidate:
        model = self.weights.model("native" if rung.float8 else None, rung.compiled)
        precision = "fp8" if rung.float8 else self.case.precision
        backward = partial(self._backward, model, rung, precision)
        bound = LARGEST_ERROR[precision]
        return self.weights.candidate(backward, self.exact, bound, rung.float8)

    def _backward(self, model: nn.Module, rung: Rung, precision: str) -> Tensor:
        from metamorph.model.precision import autocast

        total = torch.zeros((), device=self.device)
        for part in self.packed if rung.packed else self.padded:
            with autocast(precision, self.device):
                loss = self._loss(model, rung, part)
            loss.backward()
            total += loss.detach()
        return total

    def _loss(self, model: nn.Module, rung: Rung, part: Part) -> Tensor:
        from metamorph.model.unified import interval_row
        from metamorph.training.loss import vpit_losses

        batch = part.batch
        features = part.features if rung.cached else self.encoder(batch.pixels)
        attend = interval_row(batch.intervals) if rung.intervals else masked_attention(part.mask)
        embeddings = model.embed(batch.token_ids, features, batch.visual_positions)
        states = model.language(embeddings, batch.positions, attend)
        targets = features.flatten(0, 1).index_select(0, batch.visual_targets)
        if rung.routed:
            losses = vpit_losses(model, states, targets, batch, self.counts)
            return losses.text + losses.visual
        logits = model.language.head(states)  # [T, V]
        text = F.cross_entropy(logits.float(), part.labels, reduction="sum")
        predicted = model.vision_head(states).index_select(0, batch.visual_rows)
        visual = (1 - F.cosine_similarity(predicted.float(), targets.float(), dim=-1)).sum()
        return text / self.counts.text + visual / self.counts.visual
