"""How much memory a training step needs on one GPU, part by part, by formula.

Weights, gradients and optimizer states are exact, read off the parameters themselves. Activations
are what the autograd graph keeps between forward and backward on a GPU, where norms, attention and
losses are single kernels. Not counted: CUDA's own share (about 1 GB), NCCL's buffers, and what the
allocator loses to fragments.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

from metamorph.config import RunConfig, TrainingConfig
from metamorph.config.keys import Recomputation, VisualLoss
from metamorph.costs.flops import (
    PROJECTIONS,
    PROJECTOR,
    TEXT_HEAD,
    VISION_HEAD,
    Workload,
)
from metamorph.costs.sharding import Unit
from metamorph.model.language_config import LanguageConfig
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph_kernels import GRADIENT_BYTES_AT_ONCE, LOGITS_AT_ONCE

WIDE = 4  # bytes of float32
OPTIMIZER_BYTES = {  # of an element's two moments
    "torch": 2 * WIDE,
    "apex": 2 * WIDE,
    "transformer_engine": 2 * WIDE,
    "adamw8bit": 2 * (1 + WIDE / 256),  # a scale for each block of 256
}
CHECKPOINTING = get_args(Recomputation)


@dataclass(frozen=True)
class Widths:
    """Bytes of an element."""

    weights: int  # that the optimizer moves
    gathered: int  # of weights as a step computes with them, and of the residual stream
    products: int  # of what matrix products read and write

    @classmethod
    def of(cls, training: TrainingConfig, is_sharded: bool) -> "Widths":
        weights = {"fp32": WIDE, "bf16": 2}[training.weights]
        products = WIDE if training.precision == "fp32" else 2
        return cls(weights, products if is_sharded else weights, products)


def state_bytes(units: list[Unit], training: TrainingConfig) -> dict[str, float]:
    """Weights, gradients and optimizer states that one GPU holds."""
    widths = Widths.of(training, is_sharded=False)
    local = sum(unit.local for unit in units)
    trained = sum(unit.local_trained for unit in units)
    return {
        "weights": local * widths.weights,
        "gradients": trained * widths.weights,
        "optimizer states": trained * OPTIMIZER_BYTES[training.optimizer],
    }


def working_bytes(units: list[Unit], training: TrainingConfig, rows: int) -> dict[str, float]:
    """Copies of weights and gradients that a step makes on one GPU.

    Sharded: the root stays gathered, and of the blocks one is in use while the next comes; whole
    gradients are reduced as they come, but with several `rows` a GPU only after the last. Not
    sharded: autocast keeps a copy of every matrix in the dtype of the products until the backward;
    the encoder's are counted too, although they are let go at once.
    """
    widths = Widths.of(training, is_sharded=any(unit.is_sharded for unit in units))
    sharded = [unit for unit in units if unit.is_sharded]
    if not sharded:
        copies = sum(unit.whole for unit in units) * widths.products
        return {"weights for products": copies if widths.products < widths.weights else 0}
    blocks = [unit for unit in sharded if not unit.is_root]
    [root] = [unit for unit in sharded if unit.is_root]
    largest = max(unit.gathered_bytes(widths.gathered) for unit in blocks)
    if rows > 1:
        whole_gradients = sum(unit.whole_trained for unit in sharded)
    else:
        whole_gradients = root.whole_trained + 2 * max(unit.whole_trained for unit in blocks)
    return {
        "gathered weights": root.gathered_bytes(widths.gathered) + 2 * largest,
        "whole gradients": whole_gradients * WIDE,
    }


def decoder_bytes(units: list[Unit], config: RunConfig) -> dict[str, float]:
    """What one GPU holds in a step of a decoder's training, but for activations."""
    states = state_bytes(units, config.training)
    if config.decoder.ema_decay:  # of its shards, where it holds shards
        states["moving average"] = WIDE * sum(unit.local_trained for unit in units)
    return states | working_bytes(units, config.training, config.decoder.accumulate)


def block_bytes(language: LanguageConfig, mode: str, widths: Widths, is_trained: bool) -> float:
    """What one block keeps for its backward, for each token. `mode` as in `CHECKPOINTING`."""
    hidden, inner = language.hidden_size, language.intermediate_size
    queries = language.num_attention_heads * language.head_dim
    keys = language.num_key_value_heads * language.head_dim
    lse = WIDE * language.num_attention_heads
    if mode == "full":
        return hidden * widths.gathered
    if mode == "selective":  # results of products and of attention
        kept = 2 * queries + 2 * keys + 2 * hidden + 2 * inner
        return hidden * widths.gathered + kept * widths.products + lse
    # Each norm keeps its input in float32; attention q, k, v and its result; SwiGLU gate, its silu
    # and up. What else a product reads is kept for its weight gradient.
    kept = 2 * queries + 2 * keys + 3 * inner
    if is_trained:
        kept += 2 * hidden + inner
    norms = 2 * (hidden * WIDE + WIDE)
    if language.family.has_qk_norm:
        heads = language.num_attention_heads + language.num_key_value_heads
        norms += heads * (language.head_dim * WIDE + WIDE)
    return norms + kept * widths.products + lse


def activation_bytes(
    config: MetaMorphConfig,
    vision: VisionEncoder | None,
    work: Workload,
    mode: str,
    widths: Widths,
    trained: Collection[str],
    visual_loss: VisualLoss = "cosine",
) -> dict[str, float]:
    """What a step keeps or needs at its peak for one packed row, besides weights.

    `vision` is None where features are cached. The encoder keeps nothing: its part is what one of
    its layers needs at once, and it is over before the language model begins.
    """
    language, width = config.language, config.visual_width
    hidden, vocabulary = language.hidden_size, language.vocab_size
    visual = work.images * config.tokens_per_image
    is_trained = PROJECTIONS in trained
    block = block_bytes(language, mode, widths, is_trained)
    recomputed = 0 if mode == "none" else block_bytes(language, "none", widths, is_trained)
    # Features, before and after the GELU, and the result until it is in its place.
    projector = (width + 2 * config.projector_hidden_size + hidden) * (PROJECTOR in trained)
    projector *= visual * widths.products
    states = work.tokens * hidden * (WIDE + widths.gathered)  # around the last norm
    # Before the GELU; selected states and after the GELU, if trained.
    head = config.vision_head_hidden_size
    head += (hidden + config.vision_head_hidden_size) * (VISION_HEAD in trained)
    # The target, and the prediction or, in float32, its difference from the target.
    compared = width * (WIDE + (widths.products if visual_loss == "cosine" else WIDE))
    visual_head = work.visual_targets * (head * widths.products + compared)
    # The gradient is computed beside the loss, from selected states that are let go then.
    text = work.text_targets * hidden * widths.products
    text += vocabulary * hidden * WIDE * (TEXT_HEAD in trained)
    logits = work.text_targets * vocabulary
    logits_at_once = min(LOGITS_AT_ONCE, logits) * WIDE
    logits_at_once += min(GRADIENT_BYTES_AT_ONCE, logits * widths.products)
    encoder = 0
    if vision is not None:
        encoder = work.images * vision.working_bytes(widths.products)
    return {
        "blocks": work.tokens * (language.num_hidden_layers * block + recomputed),
        "projector and heads": projector + states + visual_head + text,
        "logits of a chunk": logits_at_once + work.text_targets * hidden * widths.products,
        "encoder": encoder,
    }


def peak_bytes(states: dict, working: dict, activations: dict) -> float:
    """The total: all of it, but of encoder and language model only the larger."""
    language = sum(value for name, value in activations.items() if name != "encoder")
    held = sum(states.values()) + sum(working.values())
    return held + max(language, activations["encoder"])
