"""Decode steps as CUDA graphs, one for each of a few batch sizes."""

from collections.abc import Callable
from typing import Any

import torch

from metamorph.generation.decode_step import DecodeStep

MOST_PROGRAMS = 64  # two for each power of two
WARM_UPS = 3  # runs before a capture: kernels are compiled and libraries set up


class Programs:
    """Runs steps of the first `rows` sequences: rounded up to a power of two, so that there are few
    programs. On a GPU each is compiled and captured when it is first needed."""

    def __init__(self, step: DecodeStep, slots: int):
        self.step, self.slots = step, slots
        self.ready: dict[tuple[int, bool], Callable[[], None]] = {}

    def run(self, rows: int, sampling: bool, steps: int) -> None:
        size = min(1 << (rows - 1).bit_length(), self.slots)
        if (size, sampling) not in self.ready:
            program = self.step.program(size, sampling)
            if self.step.tokens.is_cuda:
                program = self._captured(program)
            self.ready[size, sampling] = program
        for _ in range(steps):
            self.ready[size, sampling]()

    def _captured(self, program: Callable[[], None]) -> Callable[[], None]:
        compiled = compiled_program(program)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            rehearse(self.step, compiled)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compiled()
        return graph.replay


def compiled_program(program: Callable[[], None], **options: Any) -> Callable[[], None]:
    """The program by torch.compile, with `options` of that, as one graph. There are more programs
    than it compiles of one function unless it is told so."""
    limit = torch._dynamo.config.patch(recompile_limit=MOST_PROGRAMS)
    return limit(torch.compile(program, fullgraph=True, dynamic=False, **options))


def rehearse(step: DecodeStep, program: Callable[[], None]) -> None:
    """Run a program, and put back all that a later step depends on. What it wrote to the cache and
    the history lies where the next step writes."""
    tensors = step.tensors()
    saved = [tensor.clone() for tensor in tensors]
    for _ in range(WARM_UPS):
        program()
        for tensor, before in zip(tensors, saved, strict=True):
            tensor.copy_(before)
