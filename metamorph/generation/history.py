"""What decode steps emitted, brought to the host some steps later."""

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metamorph.generation.decode_step import DecodeStep


@dataclass(frozen=True)
class Emitted:
    """What a few steps emitted, on the host: see `DecodeStep`. `owners` are who had each slot when
    the steps were queued, by slot; what stands at others means nothing."""

    owners: list[Any]
    tokens: list[list[int]]  # [B][steps]
    best: list[list[float]]  # [B][steps] logits
    vectors: Tensor  # [steps, B, C] fp32


@dataclass(frozen=True)
class _Record:
    owners: list[Any]
    tensors: list[Tensor]  # on the host
    copied: torch.cuda.Event | None


class History:
    """Records of steps in the order in which they were queued; `ahead` of them may be under way
    while the host goes on."""

    def __init__(self, step: DecodeStep, ahead: int):
        self.step, self.ahead = step, ahead
        self.records: deque[_Record] = deque()

    def record(self, owners: list[Any], steps: int) -> None:
        """Queue the copy of what the last `steps` emitted, and let the next ones begin anew."""
        lines = (self.step.tokens, self.step.best, self.step.vectors)
        tensors = [tensor[:steps] for tensor in lines]
        copied = None
        if self.step.tokens.is_cuda:
            tensors = [_to_pinned(tensor) for tensor in tensors]
            copied = torch.cuda.Event()
            copied.record()
        else:
            tensors = [tensor.clone() for tensor in tensors]
        self.step.cursor.zero_()
        self.records.append(_Record(owners, tensors, copied))

    def due(self, is_decoding: bool) -> bool:
        """Whether to read now: more are under way than may be, or no other will come."""
        return len(self.records) > (self.ahead if is_decoding else 0)

    def take(self) -> Emitted:
        """The oldest record, once the device has got there."""
        record = self.records.popleft()
        if record.copied is not None:
            record.copied.synchronize()
        tokens, best, vectors = record.tensors
        return Emitted(record.owners, tokens.t().tolist(), best.t().tolist(), vectors)


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def image_key(features: Tensor) -> int:
    """An integer below 2**62 that only features [tokens, C] equal in float16 share."""
    data = features.to("cpu", torch.float16).contiguous().view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 2
