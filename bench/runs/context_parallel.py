"""`python -m bench.runs.context_parallel`: one packed row shared by several GPUs, and how evenly.

A simulation of the design in docs/scaling.md: nothing is measured, and no GPU is needed. A cell has
three shares: by how much the rank with most work has more than the mean, in attention alone and in
a whole layer; and how many keys of the row the rank that asks for most has to be sent. Each is the
mean over rows, sizes are those of Llama 3.1 8B, and work is what `metamorph.costs.flops` counts,
forward and backward: pairs that see each other, whatever tiles a kernel makes of them.

`toy` and `six families` are rows as training packs them, of the generated scenes and of the files
that docs/data.md shows. Their texts are short. `assumed` has the lengths that plans of a run assume
of the paper's mixture, and `one document` is the row that is hardest to share.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from bench.harness.documents import packed_row
from bench.runs.schedule import HISTOGRAMS
from metamorph.config import DataConfig
from metamorph.costs.flops import ATTENTION_BACKWARD, ATTENTION_REPEATED, block_weights
from metamorph.data.conversation import ChatEncoder
from metamorph.data.documents import Documents
from metamorph.data.opening import open_source
from metamorph.data.packing import RowStream
from metamorph.data.toy.tasks import KINDS
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.model.language_config import LanguageConfig
from metamorph.model.tokenizer import add_image_tokens
from metamorph_kernels import Intervals, key_intervals

TOKENS, ROWS, RANKS = 16_384, 4, (2, 4, 8, 16)
TOKENS_PER_IMAGE = 64
BLOCK = 128  # tokens that `balanced` moves together: a tile of keys
BYTES = 2  # of a bfloat16
LLAMA_8B = LanguageConfig(
    hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=128_256,
)  # fmt: skip


def pairs_of(intervals: Intervals) -> Tensor:
    """How many keys each query sees, int64 [T]."""
    return (intervals.row_end - intervals.row_start).long()


def layer_work(pairs: Tensor) -> Tensor:
    """Operations [T] of a layer's step for tokens that see `pairs` [T] keys each."""
    products = 3 * 2 * block_weights(LLAMA_8B)
    heads = LLAMA_8B.num_attention_heads * LLAMA_8B.head_dim
    return products + (1 + ATTENTION_BACKWARD + ATTENTION_REPEATED) * 4 * heads * pairs.double()


def contiguous(pairs: Tensor, ranks: int) -> Tensor:
    """Equal stretches of the row."""
    return torch.arange(len(pairs)) * ranks // len(pairs)


def head_tail(pairs: Tensor, ranks: int) -> Tensor:
    """Two stretches each, the first and the last, and so on inwards: even for one document."""
    stretch = contiguous(pairs, 2 * ranks)
    return torch.minimum(stretch, 2 * ranks - 1 - stretch)


def balanced(pairs: Tensor, ranks: int) -> Tensor:
    """As many blocks of tokens each: the one with most pairs first, to whom has fewest so far."""
    owner = torch.empty(len(pairs), dtype=torch.int64)
    blocks = owner.view(-1, BLOCK)
    work, room = [0] * ranks, [len(blocks) // ranks] * ranks
    costs = pairs.view(-1, BLOCK).sum(1).tolist()
    for block in sorted(range(len(blocks)), key=lambda block: -costs[block]):
        rank = min((rank for rank in range(ranks) if room[rank]), key=lambda rank: work[rank])
        blocks[block] = rank
        work[rank] += costs[block]
        room[rank] -= 1
    return owner


def even_cuts(pairs: Tensor, ranks: int) -> Tensor:
    """Stretches of the row with equal work of a layer, and so of unequal numbers of tokens."""
    work = layer_work(pairs)
    middle = work.cumsum(0) - work / 2
    return (middle * ranks / work.sum()).long()


ASSIGNMENTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "contiguous": contiguous,
    "head-tail": head_tail,
    "balanced": balanced,
    "even cuts": even_cuts,
}


@dataclass(frozen=True)
class Shared:
    """One row shared by ranks: excess of the busiest over the mean, keys sent to the neediest."""

    attention: float
    layer: float
    keys: int


def shared(intervals: Intervals, owner: Tensor, ranks: int) -> Shared:
    """What becomes of a row whose tokens belong to the ranks `owner` int64 [T]."""
    pairs = pairs_of(intervals)
    return Shared(
        excess(pairs.double(), owner, ranks),
        excess(layer_work(pairs), owner, ranks),
        max(int(keys_sent(intervals, owner == rank).sum()) for rank in range(ranks)),
    )


def excess(work: Tensor, owner: Tensor, ranks: int) -> float:
    """By which share the rank with most of `work` [T] has more than the mean."""
    sums = torch.zeros(ranks, dtype=work.dtype).index_add_(0, owner, work)
    return float(sums.max() / sums.mean()) - 1


def keys_sent(intervals: Intervals, own: Tensor) -> Tensor:
    """Which keys, bool [T], the `own` queries, bool [T], see of other ranks."""
    edges = torch.zeros(len(own) + 1, dtype=torch.int64)
    one = torch.ones(int(own.sum()), dtype=torch.int64)
    edges.index_add_(0, intervals.row_start[own].long(), one)
    edges.index_add_(0, intervals.row_end[own].long(), -one)
    return (edges.cumsum(0)[:-1] > 0) & ~own


def key_bytes(keys: float) -> float:
    """Bytes of the keys and values of so many tokens in one layer."""
    return keys * 2 * LLAMA_8B.num_key_value_heads * LLAMA_8B.head_dim * BYTES


def head_bytes(ranks: int) -> float:
    """Bytes that a rank sends in the forward of a layer if heads are exchanged for tokens and back,
    which is queries, keys, values and results of its own tokens but for its own heads."""
    heads = 2 * (LLAMA_8B.num_attention_heads + LLAMA_8B.num_key_value_heads)
    return TOKENS / ranks * heads * LLAMA_8B.head_dim * BYTES * (ranks - 1) / ranks


def packed(config: DataConfig) -> list[Intervals]:
    """Rows as training packs them, in which pictures of prompts see themselves whole."""
    tokenizer = build_toy_tokenizer()
    add_image_tokens(tokenizer)
    encoder = ChatEncoder(tokenizer, TOKENS_PER_IMAGE, "bidirectional")
    stream = RowStream(Documents(open_source(config, seed=0), encoder, TOKENS), pad_id=0)
    return [
        key_intervals(row.document_lengths, row.bidirectional_spans) for row in islice(stream, ROWS)
    ]


def rows(mixture: Path) -> dict[str, list[Intervals]]:
    """Rows of each kind of documents."""
    assumed = HISTOGRAMS["mixture"]
    return {
        "toy": packed(DataConfig(source="toy_scenes", kinds=dict.fromkeys(KINDS, 1.0))),
        "six families": packed(DataConfig(source="mixture", path=str(mixture))),
        "assumed": [
            packed_row(TOKENS, "spans", seed, assumed).intervals(torch.device("cpu"))
            for seed in range(ROWS)
        ],
        "one document": [key_intervals([TOKENS])],
    }


def cell(drawn: Iterable[Shared]) -> str:
    """Three shares, means over rows."""
    found = list(drawn)
    shares = (
        fmean(row.attention for row in found),
        fmean(row.layer for row in found),
        fmean(row.keys for row in found) / TOKENS,
    )
    return " / ".join(f"{share:.1%}" for share in shares)


def balance_table(drawn: dict[str, list[Intervals]]) -> list[str]:
    """Every assignment of rows of every kind, as Markdown."""
    lines = [f"| documents | ranks | {' | '.join(ASSIGNMENTS)} |", "|---|---:|" + "---:|" * 4]
    for kind, kind_rows in drawn.items():
        for ranks in RANKS:
            cells = [
                cell(shared(row, assign(pairs_of(row), ranks), ranks) for row in kind_rows)
                for assign in ASSIGNMENTS.values()
            ]
            lines.append(f"| {kind} | {ranks} | {' | '.join(cells)} |")
    return lines


def bytes_table(drawn: dict[str, list[Intervals]]) -> list[str]:
    """MB that reach a rank in the forward of a layer, the neediest where they differ."""
    lines = [
        f"| ranks | all keys | heads | {' | '.join(f'contiguous, {kind}' for kind in drawn)} |",
        "|---:|" + "---:|" * (2 + len(drawn)),
    ]
    for ranks in RANKS:
        everything = key_bytes(TOKENS * (ranks - 1) / ranks)
        heads = head_bytes(ranks) if ranks <= LLAMA_8B.num_key_value_heads else None
        needed = [
            key_bytes(fmean(
                shared(row, contiguous(pairs_of(row), ranks), ranks).keys for row in kind_rows
            ))
            for kind_rows in drawn.values()
        ]  # fmt: skip
        figures = ["-" if b is None else f"{b / 1e6:.2f}" for b in (everything, heads, *needed)]
        lines.append(f"| {ranks} | {' | '.join(figures)} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mixture", type=Path, required=True, help="the mixture of docs/data.md")
    drawn = rows(parser.parse_args(arguments).mixture)
    print("\n".join([*balance_table(drawn), "", *bytes_table(drawn)]))


if __name__ == "__main__":
    main()
