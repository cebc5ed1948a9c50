"""Honest timing: verified results only, candidates in turn, a cold cache, medians and spreads."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch


def rounds_of(text: str) -> int:
    """A number of rounds as BENCH_ROUNDS says it. Raises ValueError for what is none."""
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"BENCH_ROUNDS: expected a whole number, at least 1, got {text!r}")
    return int(text)


WARM_UP_CALLS = 5
LEAST_ROUNDS = 10
MOST_ROUNDS = rounds_of(os.environ.get("BENCH_ROUNDS", "100"))  # 1 where only verification matters
LONG_ROUND, LEAST_LONG_ROUNDS = 1.0, 3  # seconds, from which on fewer rounds have to do
CYCLES_PER_SECOND = 2e9  # no less than any GPU's clock, so that a wait is never too short
LONGEST_WAIT = 0.05  # seconds; a launch slower than this is slow for another reason


@dataclass(frozen=True)
class Candidate:
    """Something to time: run(*arguments(i)) in repeat i, of which only `run` is timed.

    `error` is that of its result beside the reference, NaN if nobody looked, and `bound` the
    largest that counts as right. `calls` are in one run (a CUDA graph holds several). `float8` says
    that its matrix products are, which have a ceiling of their own. `by_the_wall` is for what the
    host does: its own time counts, and what the device still has to do when `run` returns.
    """

    run: Callable[..., object]
    arguments: Callable[[int], tuple]
    error: float
    bound: float
    calls: int = 1
    float8: bool = False
    by_the_wall: bool = False


@dataclass(frozen=True)
class Timing:
    """Of one call: its times in milliseconds, in the order in which they were taken.

    A single one is its own percentiles: what can only happen once, such as a first call.

    On a GPU also how long a call holds up the host, and the most that it allocates beyond what was
    there.
    """

    samples: list[float]
    host_milliseconds: float | None
    peak_gigabytes: float | None

    @cached_property
    def milliseconds(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The 20th percentile."""
        return self._fifths[0]

    @property
    def high(self) -> float:
        """The 80th percentile."""
        return self._fifths[-1]

    @cached_property
    def _fifths(self) -> list[float]:
        if len(self.samples) == 1:
            return self.samples
        return statistics.quantiles(self.samples, n=5, method="inclusive")


def measure(
    candidates: dict[str, Candidate], device: torch.device, seconds: float | None = None
) -> dict[str, Timing]:
    """The time of each candidate, taken in turn so that clock and temperature are the same for all.

    `seconds` is about how long all repeats may take together.

    Raises ValueError for a candidate that was not verified.
    """
    for name, candidate in candidates.items():
        if not candidate.error <= candidate.bound:
            raise ValueError(
                f"{name}: error {candidate.error:.1e} is not within {candidate.bound:.1e}; "
                "only verified results are timed"
            )
    if seconds is None:
        seconds = 2.0 if device.type == "cuda" else 0.2
    costs = {name: _warm_up(candidate, device) for name, candidate in candidates.items()}
    total = sum(cost.repeat_seconds for cost in costs.values())
    least = LEAST_ROUNDS if total < LONG_ROUND else min(LEAST_ROUNDS, LEAST_LONG_ROUNDS)
    rounds = min(MOST_ROUNDS, max(least, round(seconds / max(total, 1e-9))))
    wall_clock = _wall_clock(device)
    clock = _gpu_clock(device) if device.type == "cuda" else wall_clock
    samples = {name: [] for name in candidates}
    names = list(candidates)
    for repeat in range(rounds):
        turn = repeat % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            candidate = candidates[name]
            read = wall_clock if candidate.by_the_wall else clock
            milliseconds = read(candidate, repeat, costs[name].launch_seconds)
            samples[name].append(milliseconds / candidate.calls)
    return {name: _summary(samples[name], candidates[name], costs[name]) for name in names}


def captured(functions: Sequence[Callable[[], object]], device: torch.device) -> tuple:
    """(run, outputs): one call that runs all functions, and what they write.

    On a GPU a CUDA graph of them, so that short kernels are timed and not their launches.
    """
    if device.type != "cuda":
        outputs = [function() for function in functions]

        def run():
            outputs[:] = [function() for function in functions]

        return run, outputs
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for function in functions:
            function()  # compiles and allocates, which a graph cannot hold
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [function() for function in functions]
    return graph.replay, outputs


def until_done(run: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What a call returns, and the milliseconds until all of it is done, from an idle device on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, 1e3 * (time.perf_counter() - begin)


def flush_bytes(device: torch.device) -> int:
    """So much written memory leaves nothing else in the second-level cache."""
    return 4 * torch.cuda.get_device_properties(device).L2_cache_size


@dataclass(frozen=True)
class _Cost:
    repeat_seconds: float  # arguments included
    launch_seconds: float  # until `run` returns, finished or not
    peak_gigabytes: float | None


def _warm_up(candidate: Candidate, device: torch.device) -> _Cost:
    launches, peak = [], None
    on_gpu = device.type == "cuda"
    for repeat in range(min(WARM_UP_CALLS, MOST_ROUNDS)):
        begin = time.perf_counter()
        arguments = candidate.arguments(repeat + 1)  # verification took the first
        if on_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        ready = time.perf_counter()
        candidate.run(*arguments)
        launches.append(time.perf_counter() - ready)
        if on_gpu:
            torch.cuda.synchronize(device)
            peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9
        repeat_seconds = time.perf_counter() - begin
        if repeat_seconds > LONG_ROUND:  # what takes so long has nothing left to warm up
            break
    return _Cost(repeat_seconds, statistics.median(launches), peak)


def _gpu_clock(device: torch.device) -> Callable[[Candidate, int, float], float]:
    cache = torch.empty(flush_bytes(device), dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(candidate, repeat, launch_seconds):
        arguments = candidate.arguments(repeat)
        cache.zero_()
        # The GPU waits until all is launched: the events then enclose its work, not the host's.
        wait = min(LONGEST_WAIT, 1.5 * launch_seconds + 5e-5)
        torch.cuda._sleep(int(wait * CYCLES_PER_SECOND))
        start.record()
        candidate.run(*arguments)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return clock


def _wall_clock(device: torch.device) -> Callable[[Candidate, int, float], float]:
    def clock(candidate, repeat, _):
        arguments = candidate.arguments(repeat)
        return until_done(partial(candidate.run, *arguments), device)[1]

    return clock


def _summary(samples: list[float], candidate: Candidate, cost: _Cost) -> Timing:
    on_gpu = cost.peak_gigabytes is not None
    return Timing(
        samples=samples,
        host_milliseconds=1e3 * cost.launch_seconds / candidate.calls if on_gpu else None,
        peak_gigabytes=cost.peak_gigabytes,
    )
