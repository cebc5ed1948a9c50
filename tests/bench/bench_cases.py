"""Entries small enough for every test run."""

import torch

from bench.ops import attention, cosine, decode, pooling, prefill, text_loss

SMALL = {"query_heads": 4, "key_heads": 2, "head_dim": 16, "dtype": torch.float32}
TINY_ATTENTION = attention.Case("spans", 160, quick=True, **SMALL)
TINY_DECODE = decode.Case("decode-tiny", (20, 3), **SMALL)
TINY_PREFILL = prefill.Case("prefill-tiny", (20, 0, 3), 9, **SMALL)
TINY_COSINE = cosine.CosineCase(70, 24, torch.float32)
TINY_LINEAR_COSINE = cosine.LinearCosineCase(70, 16, 24, torch.float32)
TINY_TEXT_LOSS = text_loss.Case(90, 30, width=8, vocabulary=100, dtype=torch.float32)
TINY_POOL = pooling.Case(3, side=9, grid=4, columns=24, dtype=torch.float32)
