"""A whole training step of a few layers as wide as Llama 3.1 8B's, in bfloat16 and in float8."""

import importlib.util
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.comparison import Comparison
from bench.documents import IMAGE_TOKENS, PackedRow, packed_row
from bench.results import Result
from bench.timing import Candidate
from metamorph_kernels import key_intervals

OPERATION = "training step"
SUPERVISED_SHARE = 4  # every so many-th token of text is predicted
# Of gradients, relative, beside float32: whatever is wrong is far above. How well float8 trains is
# not judged here but by tests/training, which compare whole curves.
LARGEST_ERROR = {"bf16": 0.1, "fp8": 0.5}
JUDGED = (
    "language.model.layers.0.self_attn.q_proj.weight",
    "language.model.layers.0.mlp.down_proj.weight",
    "language.lm_head.weight",
    "projector.linear_1.weight",
    "vision_head.linear_2.weight",
)


@dataclass(frozen=True)
class Case:
    """One packed row of tokens through a model; the widths are those of Llama 3.1 8B."""

    tokens: int
    layers: int = 8
    hidden: int = 4096
    intermediate: int = 14_336
    heads: int = 32
    key_heads: int = 8
    vocabulary: int = 128_258
    visual_width: int = 1152
    quick: bool = False

    @property
    def name(self) -> str:
        return f"training-step-{self.tokens}-{self.layers}"

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.layers} layers of {self.hidden}, AdamW, one row a step"

    def run(self, device: torch.device) -> list[Result]:
        """Verify the gradients of every provider, then time forward, backward and optimizer."""
        comparison = Comparison(OPERATION, str(self))
        absence = _missing_package()
        trial = None if absence else _Trial(self, device)
        for provider in PROVIDERS:
            comparison.add(
                provider.name,
                lambda provider=provider: trial.candidate(provider),
                absence or provider.absence(device),
            )
        return comparison.results(device, trial.flops if trial else None, "TFLOP/s")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a tiny one, to rehearse."""
    if device_type == "cpu":
        sizes = {"hidden": 64, "intermediate": 128, "heads": 4, "key_heads": 2, "vocabulary": 256}
        return [Case(384, layers=2, visual_width=32, quick=True, **sizes)]
    return [Case(8192, quick=True), Case(16_384)]


@dataclass(frozen=True)
class Provider:
    """A precision, who computes its float8 products, and whether blocks are compiled."""

    name: str
    precision: str
    float8_backend: str | None = None
    compiled: bool = False

    def absence(self, device: torch.device) -> str | None:
        if self.compiled and device.type != "cuda":
            return "compiled on a GPU only"
        if self.float8_backend is None:
            return None
        from metamorph.errors import UserError
        from metamorph.model.precision import check_precision

        try:
            check_precision("fp8", self.float8_backend, device)
        except UserError as error:
            return str(error)
        return None


PROVIDERS = [
    Provider("ours bf16", "bf16"),
    Provider("ours bf16, compiled", "bf16", compiled=True),
    Provider("ours fp8", "fp8", "native"),
    Provider("ours fp8, compiled", "fp8", "native", compiled=True),
    Provider("torchao fp8", "fp8", "torchao"),
    Provider("torchao fp8, compiled", "fp8", "torchao", compiled=True),
    Provider("Transformer Engine fp8", "fp8", "transformer_engine"),
]


def _missing_package() -> str | None:
    for package in ("transformers", "safetensors", "tokenizers", "PIL", "tqdm", "yaml"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed, which the model needs"
    return None


class _Trial:
    """Float32 weights and one optimizer, which the models of all providers share."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.model.unified import MetaMorph

        self.case, self.device = case, device
        self.config = _config(case)
        torch.manual_seed(0)
        self.base = MetaMorph(self.config).to(device)
        # A rate of 0 leaves the weights as they are for whoever comes next, at the same cost.
        self.optimizer = torch.optim.AdamW(self.base.parameters(), lr=0.0, fused=True)
        row = packed_row(case.tokens, "spans")
        self.features, self.batch, self.counts = planned(row, case, device)
        self.flops = step_flops(row, case, self.batch)
        self.exact = self._gradients(self.base, "fp32")

    def candidate(self, provider: Provider) -> Candidate:
        model = self._model(provider)
        found = self._gradients(model, provider.precision)
        errors = [
            torch.dist(a.double(), b.double()) / b.double().norm()
            for a, b in zip(found, self.exact, strict=True)
        ]
        step = partial(self._step, model, provider.precision)
        error = torch.stack(errors).max().item()  # unlike max(), it does not lose a NaN
        return Candidate(step, lambda _: (), error, LARGEST_ERROR[provider.precision])

    def _model(self, provider: Provider) -> nn.Module:
        from metamorph.model.precision import convert_to_float8
        from metamorph.model.unified import MetaMorph

        with torch.device("meta"):
            model = MetaMorph(self.config)
        model.load_state_dict(self.base.state_dict(keep_vars=True), assign=True)
        if provider.float8_backend is not None:
            convert_to_float8(model, provider.float8_backend)
        if provider.compiled:
            for layer in model.language.model.layers:
                layer.compile()
        return model

    def _loss(self, model: nn.Module, precision: str) -> Tensor:
        from metamorph.model.precision import autocast
        from metamorph.training.loss import vpit_losses

        batch = self.batch
        with autocast(precision, self.device):
            states = model(
                batch.token_ids,
                batch.positions,
                batch.intervals,
                self.features,
                batch.visual_positions,
            )
            targets = self.features.flatten(0, 1).index_select(0, batch.visual_targets)
            losses = vpit_losses(model, states, targets, batch, self.counts)
            return losses.text + losses.visual

    def _step(self, model: nn.Module, precision: str) -> None:
        self._loss(model, precision).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self, model: nn.Module, precision: str) -> list[Tensor]:
        self._loss(model, precision).backward()
        gradients = [self.base.get_parameter(name).grad for name in JUDGED]
        self.optimizer.zero_grad(set_to_none=True)
        return gradients


def _config(case: Case):
    from metamorph.model.language_config import LanguageConfig
    from metamorph.model.unified import MetaMorphConfig

    language = LanguageConfig(
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.key_heads,
        vocab_size=case.vocabulary,
        rope_theta=500_000.0,
    )
    return MetaMorphConfig(
        language=language,
        visual_width=case.visual_width,
        grid=8,
        image_start_id=case.vocabulary - 2,
        image_end_id=case.vocabulary - 1,
        pad_id=0,
        eos_ids=[1],
    )


def planned(row: PackedRow, case: Case, device: torch.device) -> tuple:
    """Features of the row's images, its batch and its targets: every second image is predicted."""
    from metamorph.training.batch import Batch
    from metamorph.training.loss import TargetCounts

    generator = torch.Generator().manual_seed(0)
    places = torch.cat([torch.arange(*span) for span in row.spans])  # [images x 64]
    drawn = torch.arange(len(places)).view(-1, IMAGE_TOKENS)[1::2].flatten()
    is_text = torch.ones(row.tokens, dtype=torch.bool)
    is_text[places] = False
    text_rows = is_text.nonzero()[::SUPERVISED_SHARE, 0]
    features = torch.randn(len(row.spans), IMAGE_TOKENS, case.visual_width, generator=generator)
    tensors = {
        "token_ids": torch.randint(case.vocabulary, (row.tokens,), generator=generator),
        "positions": torch.cat([torch.arange(length) for length in row.lengths]),
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


def step_flops(row: PackedRow, case: Case, batch) -> int:
    """Matrix products of forward and backward (three times the forward) that cannot be left out."""
    head_dim = case.hidden // case.heads
    widths = (2 * case.heads + 2 * case.key_heads) * head_dim + 3 * case.intermediate
    per_token = 2 * case.hidden * widths  # of one layer
    causal = PackedRow(row.lengths).visible_pairs
    attention = 4 * head_dim * case.heads * causal
    layers = case.layers * (row.tokens * per_token + attention)
    text = 2 * len(batch.text_rows) * case.hidden * case.vocabulary
    mlp = 2 * case.hidden * (case.visual_width + case.hidden)
    visual = mlp * (len(batch.visual_positions) + len(batch.visual_rows))
    return 3 * (layers + text + visual)
