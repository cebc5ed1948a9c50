"""Floating-point operations of a training step, by formula and by part of the model.

A matrix product of [N, K] and [K, M] is 2 N K M; all else is left out. Attention counts the pairs
of query and key that may see each other, so a packed row of short documents costs less than one
long document. What is counted is the work of the *model*: what a run computes a second time to
save memory is in `repeated_flops`, and belongs to the time of a step but not to its utilisation
(MFU).

The frozen encoder is counted apart from the language model: figures of others mostly leave it out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from metamorph.data.packing import PackedRow
from metamorph.model.language_config import LanguageConfig
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.model.vision import VisionEncoder

PROJECTIONS, ATTENTION, TEXT_HEAD = "language projections", "language attention", "text head"
PROJECTOR, VISION_HEAD, ENCODER = "projector", "vision head", "encoder"
# Of the attention's backward, as multiples of its forward: four products where the forward has two.
# Our kernels compute scores and their gradient once in each of two passes: three products more.
ATTENTION_BACKWARD, ATTENTION_REPEATED = 2, 1.5
PARTS = (PROJECTIONS, ATTENTION, TEXT_HEAD, PROJECTOR, VISION_HEAD)  # the encoder is never trained
FORMULA = """\
  language projections  2 T W forward (T tokens, W elements of the blocks' matrices), the same again
                        for input gradients, the same again for weight gradients where trained
  language attention    4 D Hq pairs a layer forward, twice that backward
  text head             2 Nt H V forward; input gradient; weight gradient where trained
  projector             2 Nv (C P + P H) forward; nothing below it is trained
  vision head           2 Nr (H F + F C) forward; input gradient; weight gradient where trained
  encoder               forward alone; SigLIP's last layer only for the tokens that pooling reads"""


@dataclass(frozen=True)
class Workload:
    """What packed rows ask of the model. Workloads add up, and scale to a mean."""

    tokens: float = 0  # T, padding too
    visible_pairs: float = 0  # of a query and a key
    text_targets: float = 0  # Nt
    visual_targets: float = 0  # Nr
    images: float = 0

    @classmethod
    def of(cls, row: PackedRow, tokens_per_image: int) -> "Workload":
        return cls(
            tokens=len(row.token_ids),
            visible_pairs=causal_pairs(row.document_lengths)
            + later_pairs([end - start for start, end in row.bidirectional_spans]),
            text_targets=len(row.text_rows),
            visual_targets=len(row.visual_rows),
            images=len(row.visual_positions) // tokens_per_image,
        )

    @classmethod
    def mean(cls, rows: Sequence[PackedRow], tokens_per_image: int) -> "Workload":
        """The mean row of some; at least one."""
        total = cls()
        for row in rows:
            total += cls.of(row, tokens_per_image)
        return total * (1 / len(rows))

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __mul__(self, factor: float) -> "Workload":
        return Workload(*(value * factor for value in self.values()))

    def values(self) -> tuple[float, ...]:
        return tuple(vars(self).values())


@dataclass(frozen=True)
class Flops:
    """Operations of one part."""

    forward: float
    backward: float = 0

    @property
    def total(self) -> float:
        return self.forward + self.backward


def causal_pairs(document_lengths: Collection[int]) -> int:
    """Pairs of query and key in a packed row where each document is causal."""
    return sum(length * (length + 1) // 2 for length in document_lengths)


def later_pairs(span_lengths: Collection[int]) -> int:
    """Pairs of a query and a later key: what images that see themselves whole have besides."""
    return sum(length * (length - 1) // 2 for length in span_lengths)


def block_weights(language: LanguageConfig) -> int:
    """Elements of the matrices of one block of the language model."""
    heads = 2 * language.num_attention_heads + 2 * language.num_key_value_heads
    return language.hidden_size * (heads * language.head_dim + 3 * language.intermediate_size)


def trained_parts(model: MetaMorph) -> frozenset[str]:
    """Parts whose weights get gradients, by the names that `language_flops` gives them."""
    weights = {
        PROJECTIONS: model.language.model.layers[0].get_parameter("mlp.down_proj.weight"),
        TEXT_HEAD: model.language.output_weight,
        PROJECTOR: model.projector.linear_1.weight,
        VISION_HEAD: model.vision_head.linear_1.weight,
    }
    return frozenset(name for name, weight in weights.items() if weight.requires_grad)


def language_flops(
    config: MetaMorphConfig, work: Workload, trained: Collection[str]
) -> dict[str, Flops]:
    """Forward and backward over packed rows, by part, without the encoder.

    Args:
        config: of the unified model.
        work: of one row, or the sum over a step's.
        trained: parts with weight gradients, from `trained_parts`. Input gradients always pass
            through all blocks, for in every stage something below them is trained.
    """
    language, width = config.language, config.visual_width
    hidden, layers = language.hidden_size, language.num_hidden_layers
    visual_tokens = work.images * config.tokens_per_image
    inner = config.projector_hidden_size
    head_inner = config.vision_head_hidden_size

    def product(name: str, forward: float) -> Flops:
        return Flops(forward, forward * (1 + (name in trained)))

    attention = 4 * layers * language.num_attention_heads * language.head_dim * work.visible_pairs
    first, second = (2 * visual_tokens * inner * width, 2 * visual_tokens * inner * hidden)
    return {
        PROJECTIONS: product(PROJECTIONS, 2 * work.tokens * layers * block_weights(language)),
        ATTENTION: Flops(attention, ATTENTION_BACKWARD * attention),
        TEXT_HEAD: product(TEXT_HEAD, 2 * work.text_targets * hidden * language.vocab_size),
        # Features take no gradient, so the first product has no input gradient.
        PROJECTOR: Flops(first + second, (first + 2 * second) * (PROJECTOR in trained)),
        VISION_HEAD: product(VISION_HEAD, 2 * work.visual_targets * head_inner * (hidden + width)),
    }


def encoder_flops(vision: VisionEncoder, images: float) -> Flops:
    """The frozen encoder over some images."""
    return Flops(images * vision.operations())


def repeated_flops(parts: dict[str, Flops], activation_checkpointing: str) -> float:
    """Operations that a step computes once more than the model needs.

    The attention's backward repeats its scores; full activation checkpointing repeats the blocks'
    forward, and selective the forward of what it does not keep: see `metamorph.costs.memory`.
    """
    projections, attention = parts[PROJECTIONS].forward, parts[ATTENTION].forward
    repeated = {
        "none": 0.0,
        "selective": 0.0,
        "full": projections + attention,
    }[activation_checkpointing]
    return repeated + ATTENTION_REPEATED * attention
