"""Models of random weights for whole runs: as wide as Llama 3.1 8B, and with fewer layers."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.results import Result
from bench.harness.timing import Candidate

JUDGED = (  # parameters whose gradients are compared
    "language.model.layers.0.self_attn.q_proj.weight",
    "language.model.layers.0.mlp.down_proj.weight",
    "language.lm_head.weight",
    "projector.linear_1.weight",
    "vision_head.linear_2.weight",
)
NEEDED = ("transformers", "safetensors", "tokenizers", "PIL", "tqdm", "yaml")
Backward = Callable[[], Tensor]  # runs forward and backward of a step and returns its loss


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Those of Llama 3.1 8B, whose 32 layers would not leave room for an optimizer."""

    layers: int = 8
    hidden: int = 4096
    intermediate: int = 14_336
    heads: int = 32
    key_heads: int = 8
    vocabulary: int = 128_258
    visual_width: int = 1152

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def projector_weights(self) -> int:
        """Elements of the projector's matrices, and of the vision head's."""
        return self.hidden * (self.visual_width + self.hidden)

    def config(self):
        from metamorph.model.language_config import LanguageConfig
        from metamorph.model.unified import MetaMorphConfig

        language = LanguageConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=self.vocabulary,
            rope_theta=500_000.0,
        )
        return MetaMorphConfig(
            language=language,
            visual_width=self.visual_width,
            grid=8,
            image_start_id=self.vocabulary - 2,
            image_end_id=self.vocabulary - 1,
            pad_id=0,
            eos_ids=[1],
        )


TOY = {
    "layers": 2,
    "hidden": 64,
    "intermediate": 128,
    "heads": 4,
    "key_heads": 2,
    "vocabulary": 256,
    "visual_width": 32,
}


def missing_package(*others: str) -> str | None:
    """Why there is no model here, or None; `others` are what a run needs beside it."""
    for package in (*NEEDED, *others):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed, which the model needs"
    return None


def speeds(results: list[Result], count: int, unit: str) -> list[Result]:
    """A remark for whoever was timed: `count` of `unit` in a call, a second."""
    remarks = []
    for line in results:
        if line.timing is not None:
            speed = 1e3 * count / line.timing.milliseconds
            words = f"{speed:,.0f} {unit}/s" if speed >= 100 else f"{speed:.3g} {unit}/s"
            remarks.append(Result(line.operation, line.case, line.provider, "ok", words))
    return remarks


def masked_attention(mask: Tensor) -> Callable[..., Tensor]:
    """Plain attention of rows of equal length, one after another, under a mask [rows, 1, T, T]."""

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        # Repeated keys, as transformers does: grouped queries and a mask leave only the slow path.
        k, v = (heads.repeat_interleave(group, dim=1) for heads in (k, v))
        q, k, v = (x.unflatten(0, (-1, mask.shape[-1])).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(0, 1)

    return attention


class Steps:
    """Training steps over the same parameters, whoever computes them: one optimizer for all.

    The loss and the gradients of the parameters `judged` say whether a step is right.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], judged: list[nn.Parameter]):
        # A rate of 0 leaves the weights as they are for whoever comes next, at the same cost.
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
        self.judged = judged

    def results(self, backward: Backward) -> list[Tensor]:
        """The loss of a step and the gradients that are compared."""
        loss = backward()
        gradients = [parameter.grad for parameter in self.judged]
        self.optimizer.zero_grad(set_to_none=True)
        return [loss, *gradients]

    def candidate(
        self, backward: Backward, exact: list[Tensor], bound: float, float8: bool = False
    ) -> Candidate:
        """A whole step, its loss and gradients held to `exact`."""

        def step() -> None:
            backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        errors = [
            torch.dist(a.double(), b.double()) / b.double().norm()
            for a, b in zip(self.results(backward), exact, strict=True)
        ]
        error = torch.stack(errors).max().item()  # unlike max(), it does not lose a NaN
        return Candidate(step, lambda _: (), error, bound, float8=float8)


class SharedWeights(Steps):
    """Float32 weights, and models of any precision that share them."""

    def __init__(self, widths: Widths, device: torch.device):
        from metamorph.model.unified import MetaMorph

        self.config = widths.config()
        torch.manual_seed(0)
        self.base = MetaMorph(self.config).to(device)
        super().__init__(self.base.parameters(), [self.base.get_parameter(name) for name in JUDGED])

    def model(
        self,
        float8_backend: str | None = None,
        compiled: bool = False,
        float8_recipe: str | None = None,
    ) -> nn.Module:
        """Another model of the same parameters, maybe in float8, maybe with compiled blocks."""
        from metamorph.model.precision import convert_to_float8
        from metamorph.model.unified import MetaMorph

        with torch.device("meta"):
            model = MetaMorph(self.config)
        model.load_state_dict(self.base.state_dict(keep_vars=True), assign=True)
        if float8_backend is not None:
            convert_to_float8(model, float8_backend, fp8_recipe=float8_recipe)
        if compiled:
            for layer in model.language.model.layers:
                layer.compile()
        return model
