"""A whole training step of a few layers as wide as Llama 3.1 8B's, in bfloat16 and in float8."""

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
from bench.runs.models import TOY, SharedWeights, Widths, missing_package
from metamorph_kernels import key_intervals

OPERATION = "training step"
SUPERVISED_SHARE = 4  # every so many-th token of text is predicted
# Of gradients, relative, beside float32: whatever is wrong is far above. How well float8 trains is
# not judged here but by tests/training, which compare whole curves.
LARGEST_ERROR = {"fp32": 1e-4, "bf16": 0.1, "fp8": 0.5}


@dataclass(frozen=True)
class Case(Widths):
    """One packed row of tokens through a model."""

    tokens: int
    quick: bool = False

    @property
    def name(self) -> str:
        return f"training-step-{self.tokens}-{self.layers}"

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.layers} layers of {self.hidden}, AdamW, one row a step"

    def run(self, device: torch.device) -> list[Result]:
        """Verify the gradients of every provider, then time forward, backward and optimizer."""
        comparison = Comparison(OPERATION, str(self))
        absence = missing_package()
        trial = None if absence else _Trial(self, device)
        for provider in PROVIDERS:
            make = partial(_Trial.candidate, trial, provider.method)
            comparison.add(provider.name, make, absence or provider.absence(device))
        return comparison.results(device, trial.flops if trial else None, "TFLOP/s")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a tiny one, to rehearse."""
    if device_type == "cpu":
        return [Case(384, quick=True, **TOY)]
    return [Case(8192, quick=True), Case(16_384)]


@dataclass(frozen=True)
class Recipe:
    """A precision, who computes its float8 products, and whether blocks are compiled.

    `library` computes the parts of a block that `fused_parts` lets it; `float8_recipe` is one of
    the backend's that is not its default.
    """

    precision: str
    float8_backend: str | None = None
    compiled: bool = False
    library: str | None = None
    float8_recipe: str | None = None

    def absence(self, device: torch.device) -> str | None:
        if self.compiled and (reason := compiler_absence(device)):
            return reason
        from metamorph.errors import UserError
        from metamorph.model.fused_parts import choose_parts
        from metamorph.model.precision import check_precision

        try:
            if self.float8_backend is not None:
                check_precision("fp8", self.float8_backend, device, self.float8_recipe)
            choose_parts(self.parts, device)
        except UserError as error:
            return str(error)
        return None

    @property
    def parts(self):
        from metamorph.config import ModelConfig

        return ModelConfig(**dict.fromkeys(PARTS.get(self.library, ()), self.library))


PARTS = {"apex": ("rms_norm",), "liger": ("rms_norm", "rotary", "swiglu")}
RECIPES = {
    "ours bf16": Recipe("bf16"),
    "ours bf16, compiled": Recipe("bf16", compiled=True),
    "ours fp8": Recipe("fp8", "native"),
    "ours fp8, compiled": Recipe("fp8", "native", compiled=True),
    "torchao fp8": Recipe("fp8", "torchao"),
    "torchao fp8, compiled": Recipe("fp8", "torchao", compiled=True),
    "torchao fp8, weight gradients in bf16": Recipe(
        "fp8", "torchao", float8_recipe="rowwise_with_gw_hp"
    ),
    "Transformer Engine fp8": Recipe("fp8", "transformer_engine"),
    "Transformer Engine fp8, blocks": Recipe(
        "fp8", "transformer_engine", float8_recipe="Float8BlockScaling"
    ),
    "Transformer Engine MXFP8": Recipe(
        "fp8", "transformer_engine", float8_recipe="MXFP8BlockScaling"
    ),
    "bf16, apex RMSNorm": Recipe("bf16", library="apex"),
    "bf16, Liger RMSNorm, rotary, SwiGLU": Recipe("bf16", library="liger"),
}
PROVIDERS = [Provider(name, recipe, recipe.absence) for name, recipe in RECIPES.items()]


class _Trial:
    """Weights, a packed row, and its loss and gradients in float32."""

    def __init__(self, case: Case, device: torch.device):
        self.device = device
        self.weights = SharedWeights(case, device)
        row = packed_row(case.tokens, "spans")
        features, batch, self.counts = planned(row, case, device)
        self.batch = replace(batch, features=features)
        self.flops = step_flops(row, case, self.batch)
        self.exact = self.weights.results(partial(self._backward, self.weights.base, "fp32"))

    def candidate(self, recipe: Recipe) -> Candidate:
        model = self._model(recipe)
        return self.weights.candidate(
            partial(self._backward, model, recipe.precision),
            self.exact,
            LARGEST_ERROR[recipe.precision],
            float8=recipe.precision == "fp8",
        )

    def _model(self, recipe: Recipe) -> nn.Module:
        from metamorph.model.fused_parts import choose_parts, install_parts

        model = self.weights.model(recipe.float8_backend, recipe.compiled, recipe.float8_recipe)
        parts = choose_parts(recipe.parts, self.device)
        install_parts(model, parts, self.device, torch.bfloat16)
        return model

    def _backward(self, model: nn.Module, precision: str) -> Tensor:
        from metamorph.model.precision import autocast
        from metamorph.training.language_stage import batch_losses

        with autocast(precision, self.device):
            losses, _ = batch_losses(model, self.batch, self.counts)
            loss = losses.text + losses.visual
        loss.backward()
        return loss.detach()


def planned(row: SyntheticRow, case: Widths, device: torch.device) -> tuple:
    """Features of the row's images, its batch and its targets: every second image is predicted."""
    from metamorph.data.packing import TargetCounts
    from metamorph.training.batch import Batch

    generator = torch.Generator().manual_seed(0)
    places = torch.cat([torch.arange(*span) for span in row.spans])  # [images x 64]
    positions = torch.cat([torch.arange(length) for length in row.lengths])
    images = torch.arange(len(places)).view(-1, IMAGE_TOKENS)[1::2]
    # The first token of a document has none before it that could predict it.
    drawn = images[positions[places[images[:, 0]]] > 0].flatten()
    is_text = torch.ones(row.tokens, dtype=torch.bool)
    is_text[places] = False
    text_rows = is_text.nonzero()[::SUPERVISED_SHARE, 0]
    features = torch.randn(len(row.spans), IMAGE_TOKENS, case.visual_width, generator=generator)
    tensors = {
        "token_ids": torch.randint(case.vocabulary, (row.tokens,), generator=generator),
        "positions": positions,
        "visual_positions": places,
        "text_rows": text_rows,
        "text_labels": torch.randint(case.vocabulary, (len(text_rows),), generator=generator),
        "visual_rows": places[drawn] - 1,
        "visual_targets": drawn,
    }
    batch = Batch(
        pixels=torch.empty(0, device=device),
        intervals=key_intervals(row.lengths, device=device),
        **{name: tensor.to(device) for name, tensor in tensors.items()},
    )
    counts = TargetCounts(text=len(text_rows), visual=len(drawn))
    return F.normalize(features, dim=-1).to(device), batch, counts


def step_flops(row: SyntheticRow, case: Widths, batch) -> float:
    """Of forward and backward without the encoder, where everything is trained."""
    from metamorph.costs.flops import PARTS, Workload, causal_pairs, language_flops

    work = Workload(
        tokens=row.tokens,
        visible_pairs=causal_pairs(row.lengths),
        text_targets=len(batch.text_rows),
        visual_targets=len(batch.visual_rows),
        images=len(row.spans),
    )
    return sum(part.total for part in language_flops(case.config(), work, PARTS).values())
