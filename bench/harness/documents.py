"""Packed rows of image-instruction data, drawn from a written histogram of document lengths."""

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from metamorph_kernels import Intervals, key_intervals

IMAGE_TOKENS = 64  # MetaMorph, arXiv 2412.14164: an image is 64 tokens
LEAST_TEXT = 16  # tokens of text beside each image, its start and end token among them


@dataclass(frozen=True)
class Kind:
    """A kind of document: its share of all documents, its tokens, and at most how many images."""

    share: float
    shortest: int
    longest: int
    images: int


# Estimated from what such data sets hold, not counted in one; tokens include those of the images.
# Inside a kind lengths are log-uniform, since length counts of text fall about as 1 / length.
# The mean is about 670 tokens. The cap is what trainers commonly cut documents at.
KINDS = (
    Kind(0.45, 100, 400, images=1),  # a caption, or a short question: the image is half of it
    Kind(0.35, 300, 1200, images=1),  # LLaVA-style chats: 2 to 6 turns of 50 to 150 tokens
    Kind(0.15, 800, 2048, images=4),  # long answers, image editing, image pairs
    Kind(0.05, 2048, 4096, images=8),  # interleaved web pages and films as frames
)


@dataclass(frozen=True)
class SyntheticRow:
    """Documents one after another, and the bidirectional image spans [start, end) in the row."""

    lengths: tuple[int, ...]
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def mask(self) -> str:
        if self.spans:
            return "spans"
        return "documents" if len(self.lengths) > 1 else "one document"

    @property
    def visible_pairs(self) -> int:
        """Pairs (query, key) that the mask shows: the work that counts as useful."""
        causal = sum(length * (length + 1) // 2 for length in self.lengths)
        ahead = sum((end - start) * (end - start - 1) // 2 for start, end in self.spans)
        return causal + ahead

    @property
    def documents(self) -> list[tuple[int, int, tuple[tuple[int, int], ...]]]:
        """Of each document the first token, the end, and the spans that lie in it."""
        ends = list(accumulate(self.lengths))
        starts = [start for start, _ in self.spans]
        return [
            (first, end, self.spans[bisect_left(starts, first) : bisect_left(starts, end)])
            for first, end in zip([0, *ends], ends, strict=False)
        ]

    def bounds(self, device: torch.device) -> Tensor:
        """int32 [documents + 1]: where each begins, and the end of the row."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device)

    def intervals(self, device: torch.device) -> Intervals:
        return key_intervals(self.lengths, self.spans, device=device)


def equal_row(tokens: int, documents: int) -> SyntheticRow:
    """Causal documents of one length, which divides the row."""
    return SyntheticRow((tokens // documents,) * documents)


def packed_row(
    tokens: int, mask: str, seed: int = 0, kinds: Sequence[Kind] = KINDS
) -> SyntheticRow:
    """A row of `tokens` under a mask: "spans", "documents" (the same, causal) or "one document".

    The last document is cut where the row ends, as packing for training cuts it, and every
    document long enough for an image holds one at least.
    """
    if mask == "one document":
        return SyntheticRow((tokens,))
    generator = random.Random(seed)
    lengths, spans = [], []
    while (first := sum(lengths)) < tokens:
        [kind] = generator.choices(kinds, [kind.share for kind in kinds])
        drawn = math.exp(generator.uniform(math.log(kind.shortest), math.log(kind.longest)))
        length = min(round(drawn), tokens - first)
        lengths.append(length)
        fitting = length // (IMAGE_TOKENS + LEAST_TEXT)
        images = min(generator.randint(1, kind.images), fitting)
        for image in range(images):  # each anywhere in its share of the document
            begin, end = (first + length * part // images for part in (image, image + 1))
            start = generator.randint(begin, end - IMAGE_TOKENS)
            spans.append((start, start + IMAGE_TOKENS))
    return SyntheticRow(tuple(lengths), tuple(spans) if mask == "spans" else ())
