"""A trace of some steps, for chrome://tracing, Perfetto or TensorBoard's profiler."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

STEPS = 3  # that are traced, after one to warm up


@contextmanager
def profiled(folder: Path, first_step: int, at: int) -> Generator[profile | None]:
    """A profiler whose `step()` ends each training step, or None where `at` is 0.

    Steps `at` to `at + 2` are written to `folder/trace-N.json.gz`, with shapes and memory.
    A run that starts at `first_step` behind them writes none.
    """
    skipped = at - 1 - first_step
    if at == 0 or skipped < 0:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    warmup = min(skipped, 1)
    with profile(
        activities=activities,
        schedule=schedule(wait=skipped - warmup, warmup=warmup, active=STEPS, repeat=1),
        on_trace_ready=lambda found: found.export_chrome_trace(str(folder / f"trace-{at}.json.gz")),
        record_shapes=True,
        profile_memory=True,
    ) as running:
        yield running
