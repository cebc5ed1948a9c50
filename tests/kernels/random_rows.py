"""Random packed rows and tensors from a seed; needs nothing but torch."""

import random

import torch


def random_row(seed, longest, most):
    """(document lengths, bidirectional spans): edges, neighbours and documents of 1 are common."""
    generator = random.Random(seed)
    lengths, spans = [], []
    for _ in range(generator.randint(1, most)):
        first = sum(lengths)
        length = generator.choice([1, generator.randint(1, longest), longest])
        lengths.append(length)
        cuts = {
            generator.randint(first, first + length) for _ in range(generator.choice([0, 2, 4]))
        }
        if generator.random() < 0.3:
            cuts |= {first, first + length}
        cuts = sorted(cuts)
        step = generator.choice([1, 2])  # 1: every span touches the next
        spans += list(zip(cuts, cuts[1:], strict=False))[::step]
    return lengths, spans


def random_heads(tokens, query_heads, key_heads, head_dim, dtype, device, seed=0):
    """q [T, Hq, D], k and v [T, Hkv, D]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, heads, head_dim, generator=generator).to(device, dtype)
        for heads in (query_heads, key_heads, key_heads)
    ]
