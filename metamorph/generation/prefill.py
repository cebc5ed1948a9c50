"""Reading prompts: pieces of several, packed into one row, behind what the cache holds of each."""

from collections import abc
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from metamorph.generation.cache import KeyValueCache
from metamorph.generation.prompt import Prompt
from metamorph.model.inference import RotaryTable
from metamorph.model.language import Attention
from metamorph.model.unified import MetaMorph
from metamorph_kernels import (
    interval_attention,
    interval_attention_fp8,
    key_intervals,
    prefill_attention,
    prefill_row,
    send,
)


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a prompt, for sequence `slot` of the cache."""

    slot: int
    prompt: Prompt
    start: int
    end: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Images that see themselves whole, from the beginning of the piece on."""
        return [
            (start - self.start, end - self.start)
            for start, end in self.prompt.bidirectional_spans
            if self.start <= start and end <= self.end
        ]


def cut(prompt: Prompt, start: int, most: int) -> int:
    """Where a piece from `start` ends that has `most` tokens: before an image that sees itself
    whole, or behind it where the piece begins with it. Its keys must all be there at once."""
    end = min(start + most, len(prompt))
    for first, last in prompt.bidirectional_spans:
        if first < end < last:
            end = first if first > start else last
    return end


def prefill(
    model: MetaMorph,
    cache: KeyValueCache,
    rotary: RotaryTable,
    pieces: abc.Sequence[Piece],
    *,
    fp8: bool = False,
) -> Tensor:
    """Run pieces as one packed row and store their keys and values; the last state of each [N, H].

    The cache must hold `piece.start` tokens of each slot. `fp8` computes attention in float8 where
    no piece has anything before it.
    """
    device = model.language.model.embed_tokens.weight.device
    token_ids, visual_positions, features, spans = [], [], [], []
    for piece in pieces:
        first = len(token_ids)
        prompt, offset = piece.prompt, first - piece.start
        token_ids += prompt.token_ids[piece.start : piece.end]
        numbers = [
            number
            for number, position in enumerate(prompt.visual_positions)
            if piece.start <= position < piece.end
        ]
        visual_positions += [offset + prompt.visual_positions[number] for number in numbers]
        if numbers and prompt.features is not None:
            flat = prompt.features.flatten(0, 1)[numbers[0] : numbers[-1] + 1]
            features.append(send(flat, device))
        spans += [(first + start, first + end) for start, end in piece.spans]
    empty = torch.zeros(0, model.config.visual_width, device=device)
    embeddings = model.embed(
        send(torch.tensor(token_ids), device),
        torch.cat([empty, *features])[None],
        send(torch.tensor(visual_positions, dtype=torch.int64), device),
    )
    row = prefill_row([(p.slot, p.start, p.end - p.start) for p in pieces], spans, device)
    ends = list(accumulate(piece.end - piece.start for piece in pieces))
    last = send(torch.tensor(ends) - 1, device)  # of each piece its last token
    # In the last layer nobody needs more of the other tokens than their keys and values.
    last_row = prefill_row([(piece.slot, piece.end - 1, 1) for piece in pieces], device=device)
    last_layer = model.config.language.num_hidden_layers - 1
    attend = None  # on a CPU all attend over the cache, in C++ where that is built
    if all(piece.start == 0 for piece in pieces) and (fp8 or device.type != "cpu"):
        attend = _fresh([piece.end for piece in pieces], spans, device, fp8)

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cache.write(layer_index, row.sequences, row.positions, k, v)
        if layer_index == last_layer:
            return prefill_attention(q[last], keys, values, last_row)
        if attend is not None:
            return attend(layer_index, q, k, v)
        return prefill_attention(q, keys, values, row)

    states = model.language.run(embeddings, *rotary.at(row.positions), attention, last)  # [N, H]
    for piece in pieces:
        cache.lengths[piece.slot] = piece.end
    return states


def _fresh(
    lengths: list[int], spans: list[tuple[int, int]], device: torch.device, fp8: bool
) -> Attention:
    """Attention of whole beginnings, which need nothing of the cache."""
    intervals = key_intervals(lengths, spans, device=device)
    compute = interval_attention_fp8 if fp8 else interval_attention

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compute(q, k, v, intervals)

    return attention
