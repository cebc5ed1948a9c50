"""One step of decoding: a fixed sequence of device work, without a decision on the host."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from metamorph.generation.cache import KeyValueCache
from metamorph.generation.slots import UNLIMITED, Slots
from metamorph.model.inference import RotaryTable
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph_kernels import (
    decode_attention,
    decode_attention_on_host,
    emit_greedy_cpp,
    runs_in_cpp,
)


def decode(
    model: MetaMorph,
    cache: KeyValueCache,
    rotary: RotaryTable,
    embeddings: Tensor,
    places: Tensor,
    visible: Tensor,
) -> Tensor:
    """Feed one input vector [H] to each sequence of the cache; returns states [N, H]. `places` and
    `visible` are what `KeyValueCache.grow` says."""
    on_host = None
    if visible.is_cpu and not torch.compiler.is_compiling():
        scale = 1 / math.sqrt(model.config.language.head_dim)
        on_host = decode_attention_on_host(visible, visible.tolist(), scale)

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cache.write(layer_index, cache.owners, places, k, v)
        return on_host(q, keys, values) if on_host else decode_attention(q, keys, values, visible)

    return model.language.run(embeddings, *rotary.at(places), attention)


def token_effects(config: MetaMorphConfig) -> Tensor:
    """What a token does to the slot that chose it, int64 [2, V]: after it the sequence ends unless
    more than `needs` tokens and vectors of its budget are left, and it `begins` so many vectors and
    end token."""
    needs, begins = effects = torch.zeros(2, config.language.vocab_size, dtype=torch.int64)
    # An image is begun only if there is room for all its vectors and its end token.
    needs[config.image_start_id] = config.tokens_per_image
    begins[config.image_start_id] = config.tokens_per_image + 1
    needs[config.eos_ids] = UNLIMITED
    return effects


class DecodeStep:
    """Lets the first `rows` sequences emit once each, and feeds what they emitted.

    In text a token is chosen, within an image the prediction normalize(vision_head(state)) is
    taken and its projection fed back, and after the last vector `<image_end>` is forced (MetaMorph,
    arXiv 2412.14164, with its early-stop and stuck-image faults closed): every row computes both
    heads, and flags on the device say which of the two counts. A CUDA graph can hold a step.

    The host that reads the history knows by the same rules what each row is at, see `Sequence`.

    Attributes:
        tokens: [steps, B] int64 history: the token of a row in text or at the end of an image.
        best: [steps, B] history of the best logits; where logits are not finite, nor is that.
        vectors: [steps, B, C] fp32 history of the vision head.
        cursor: [1] int64, the line of these that the next step writes.
    """

    def __init__(
        self, model: MetaMorph, slots: Slots, cache: KeyValueCache, rotary: RotaryTable, steps: int
    ):
        config, device = model.config, slots.alive.device
        count = len(slots.alive)
        self.model, self.slots, self.cache, self.rotary = model, slots, cache, rotary
        self.image_end = config.image_end_id
        self.effects = token_effects(config).to(device)
        self.tokens = torch.zeros(steps, count, dtype=torch.int64, device=device)
        self.best = torch.zeros(steps, count, dtype=slots.states.dtype, device=device)
        self.vectors = torch.zeros(steps, count, config.visual_width, device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)

    def tensors(self) -> list[Tensor]:
        """All that a step changes and a later one depends on."""
        return [*self.slots.tensors(), self.cache.lengths, self.cursor]

    def program(self, rows: int, sampling: bool) -> Callable[[], None]:
        """A step of the first `rows`. Without `sampling` all of them must be greedy, with neither
        a repetition penalty nor a limit of images: less is computed then."""
        slots, cache = self.slots.narrow(rows), self.cache.narrow(rows)
        history = (self.tokens[:, :rows], self.best[:, :rows], self.vectors[:, :rows])

        def step() -> None:
            self._run(slots, cache, history, sampling)

        return step

    def _run(
        self, slots: Slots, cache: KeyValueCache, history: tuple[Tensor, ...], sampling: bool
    ) -> None:
        model = self.model
        logits = model.language.head(slots.states)  # [rows, V]
        vectors = model.predict_visual(slots.states)  # [rows, C]
        if not sampling and logits.dtype == self.best.dtype and runs_in_cpp(logits):
            state = slots.counts, cache.lengths, self.cursor
            fed = emit_greedy_cpp(logits, vectors, self.effects, self.image_end, *state, *history)
        else:
            fed = self._emit(slots, cache, history, *self._choose(logits, slots, sampling), vectors)
        token, is_visual, places, visible = fed
        if sampling:
            slots.images.sub_((token == model.config.image_start_id).long())
            slots.table.seen.scatter_(1, token[:, None], True)

        embeddings = model.language.model.embed_tokens(token)  # [rows, H]
        projected = model.projector(vectors.to(embeddings.dtype))
        embeddings = torch.where(is_visual, projected.to(embeddings.dtype), embeddings)
        slots.states.copy_(decode(model, cache, self.rotary, embeddings, places, visible))

    def _choose(self, logits: Tensor, slots: Slots, sampling: bool) -> tuple[Tensor, Tensor]:
        """Token ids and best logits, [rows] each, of logits [rows, V]."""
        if not sampling:
            best, chosen = logits.max(dim=-1)
            return chosen, best
        logits = logits.float()
        start = self.model.config.image_start_id
        logits[:, start].masked_fill_(slots.images == 0, -torch.inf)
        return slots.table.choose(logits, slots.budget - slots.room)

    def _emit(
        self,
        slots: Slots,
        cache: KeyValueCache,
        history: tuple[Tensor, ...],
        chosen: Tensor,
        best: Tensor,
        vectors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Emits one of `chosen` and `vectors` for each row, which goes on by that.

        Returns what is to be fed: tokens int64 [rows], whether vectors take their place, bool
        [rows, 1], then the places and numbers of keys of `KeyValueCache.grow`.
        """
        is_visual = (slots.left > 1)[:, None]
        # Within an image and at its end nothing is chosen: it neither stops nor opens another.
        token = chosen.masked_fill(slots.left > 0, self.image_end)
        emitted = token, best.to(self.best.dtype), vectors
        for lines, line in zip(history, emitted, strict=True):
            lines.index_copy_(0, self.cursor, line[None])
        self.cursor.add_(1)
        needs, begins = self.effects.index_select(1, token).unbind()  # [rows] each
        slots.alive.masked_fill_(slots.room.sub_(1) <= needs, 0)
        torch.maximum(slots.left.sub_(1), begins, out=slots.left)
        return token, is_visual, *cache.grow(slots.alive)
