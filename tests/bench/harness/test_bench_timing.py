import time
from math import nan

import pytest
import torch

from bench.harness import timing
from bench.harness.limits import measure_limits
from bench.harness.results import Result
from bench.harness.timing import LEAST_ROUNDS, Candidate, Timing, captured, measure

CPU = torch.device("cpu")


def right(run, arguments=lambda repeat: (), **options):
    return Candidate(run, arguments, error=0.0, bound=0.1, **options)


@pytest.mark.parametrize("error", [nan, 0.2])
def test_an_unverified_result_is_neither_timed_nor_kept(error):
    calls = []
    unverified = Candidate(calls.append, lambda repeat: (repeat,), error, bound=0.1)
    with pytest.raises(ValueError, match="peer: error .* only verified results are timed"):
        measure({"ours": right(calls.append, lambda repeat: (repeat,)), "peer": unverified}, CPU)
    assert not calls
    timing = Timing([1.0], None, None)
    with pytest.raises(ValueError, match="peer: a time without a verified result"):
        Result("op", "case", "peer", "ok", timing=timing, error=error, bound=0.1)
    with pytest.raises(ValueError, match="peer: a time without a verified result"):
        Result("op", "case", "peer", "ok", timing=timing)


def test_candidates_take_turns_and_inputs_rotate():
    order = []
    candidates = {
        name: right(lambda name, repeat: order.append((name, repeat)), lambda r, n=name: (n, r))
        for name in "abc"
    }
    measure(candidates, CPU, seconds=0)
    timed = order[-3 * LEAST_ROUNDS :]
    assert [name for name, _ in timed[:9]] == list("abcbcacab")
    assert [repeat for _, repeat in timed] == [i // 3 for i in range(3 * LEAST_ROUNDS)]


@pytest.mark.parametrize("text", ["0", "-1", "abc", ""])
def test_a_number_of_rounds_that_is_none_is_refused(text):
    assert timing.rounds_of("1") == 1
    with pytest.raises(ValueError, match=f"BENCH_ROUNDS: expected .* got '{text}'"):
        timing.rounds_of(text)


def test_a_single_round_still_calls_with_more_than_the_verified_inputs(monkeypatch):
    monkeypatch.setattr(timing, "MOST_ROUNDS", 1)
    calls = []
    found = measure({"ours": right(calls.append, lambda repeat: (repeat,))}, CPU)
    assert calls == [1, 0] and len(found["ours"].samples) == 1


def test_only_the_run_is_timed_and_calls_in_it_are_counted():
    candidate = right(
        lambda: time.sleep(0.004), arguments=lambda repeat: time.sleep(0.02) or (), calls=4
    )
    timing = measure({"sleep": candidate}, CPU, seconds=0)["sleep"]
    assert 1 <= timing.milliseconds < 5
    assert timing.low <= timing.milliseconds <= timing.high
    assert len(timing.samples) == LEAST_ROUNDS


def test_host_work_is_timed_by_the_wall_until_the_device_is_done(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(timing, "_warm_up", lambda *_: timing._Cost(0.0, 0.0, None))
    monkeypatch.setattr(timing, "_gpu_clock", lambda device: lambda *_: 1e6)
    plan = right(lambda: time.sleep(0.004), by_the_wall=True)
    kernel = right(lambda: time.sleep(0.004))
    gpu = torch.device("cuda")
    times = measure({"plan": plan, "kernel": kernel}, gpu, seconds=0)
    assert times["kernel"].milliseconds == 1e6
    assert 4 <= times["plan"].milliseconds < 100
    assert waits == [gpu] * 2 * LEAST_ROUNDS


def test_a_time_that_was_taken_once_is_its_own_spread():
    once = Timing([3.0], None, None)
    assert once.low == once.milliseconds == once.high == 3.0


def test_nothing_to_time_takes_no_time():
    assert measure({}, CPU) == {}


def test_captured_outputs_are_those_of_the_last_run():
    x = torch.ones(3)
    run, outputs = captured([lambda: x + 1, lambda: x + 2], CPU)
    x.zero_()
    run()
    assert [output.tolist() for output in outputs] == [[1.0] * 3, [2.0] * 3]


def test_limits_of_a_cpu():
    limits = measure_limits(CPU)
    assert limits.copy_gigabytes_per_second > 0 and limits.matmul_teraflops > 0
    assert limits.nominal_teraflops is None
