import pytest
import torch
from bench_cases import TINY_ATTENTION, TINY_DECODE, TINY_PREFILL

from bench.harness.providers import Provider
from bench.ops import attention, decode, peers, prefill
from metamorph_kernels import interval_attention, prefill_attention, prefill_row

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.usefixtures("few_repeats"),
]


def lines(results, operation):
    return {result.provider: result for result in results if result.operation == operation}


def test_an_entry_verifies_and_times_all_that_runs_here():
    results = TINY_ATTENTION.run(CPU)
    forward, backward, plan = (lines(results, operation) for operation in attention.OPERATIONS)
    first = lines(results, attention.FIRST_PLAN)
    names = {provider.name for provider in peers.PROVIDERS}
    assert set(forward) == set(backward) == set(plan) == names
    for name in ("ours torch", "ours fp8", "FlexAttention", "SDPA dense mask"):
        assert forward[name].status == "ok" and forward[name].rate > 0, forward[name]
        assert first[name].timing.milliseconds > 0 and len(first[name].timing.samples) == 1
        assert plan[name].timing.milliseconds > 0 and len(plan[name].timing.samples) > 1
        assert first[name].error == forward[name].error and plan[name].error > 0
    for name in ("ours torch", "SDPA dense mask"):
        assert backward[name].status == "ok"
    assert (forward["ours fp8"].unit, forward["ours torch"].unit) == ("TFLOP/s fp8", "TFLOP/s")
    assert forward["flash-attn 2"].status == backward["ours fp8"].status == "absent"


def wrong(row, leaves):
    intervals = row.intervals(CPU)
    return lambda q, k, v: 1.1 * interval_attention(q, k, v, intervals, impl="torch")


def wrong_backward(row, leaves):
    def attend(q, k, v):
        out = interval_attention(q, k, v, row.intervals(CPU), impl="torch")
        if out.requires_grad:
            out.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        return out

    return attend


def wrong_for_other_lengths(row, leaves):
    intervals = TINY_ATTENTION.row(seed=0).intervals(CPU)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="torch")


def nan_for_other_lengths(row, leaves):
    """Right of the first row and the second."""
    right = row != TINY_ATTENTION.row(seed=2)
    intervals = row.intervals(CPU)
    return lambda *qkv: interval_attention(*qkv, intervals, impl="torch") / right * right


def crashes(row, leaves):
    raise RuntimeError("no such kernel\nand a long story")


def test_what_fails_or_is_wrong_becomes_a_line_and_is_not_timed(monkeypatch):
    providers = [
        Provider(function.__name__, peers.RowAttention(function))
        for function in (
            wrong,
            wrong_backward,
            wrong_for_other_lengths,
            nan_for_other_lengths,
            crashes,
        )
    ]
    [ours] = [provider for provider in peers.PROVIDERS if provider.name == "ours torch"]
    monkeypatch.setattr(peers, "PROVIDERS", (*providers, ours))
    results = TINY_ATTENTION.run(CPU)
    forward, backward, plan = (lines(results, operation) for operation in attention.OPERATIONS)
    assert forward["wrong"].status == backward["wrong"].status == "failed"
    assert forward["wrong"].reason.startswith("wrong: error 1.0e-01, bound ")
    assert forward["wrong_backward"].status == "ok"
    assert backward["wrong_backward"].reason.startswith("wrong: error nan")
    assert forward["crashes"].reason == "RuntimeError: no such kernel"
    assert forward["wrong_for_other_lengths"].status == "ok"
    assert plan["wrong_for_other_lengths"].reason.startswith("wrong: error 9.4e-01")
    assert plan["nan_for_other_lengths"].reason.startswith("wrong: error nan")
    assert backward["ours torch"].status == plan["ours torch"].status == "ok"
    assert set(lines(results, attention.FIRST_PLAN)) == {
        name for name, line in forward.items() if line.status == "ok"
    }
    for line in results:
        assert (line.timing is None) == (line.status != "ok")


def test_plans_are_of_rows_as_long_with_other_documents():
    case = attention.Case("spans", 2048)
    rows = [case.row(seed) for seed in range(1 + attention.OTHER_ROWS)]
    assert {row.tokens for row in rows} == {2048}
    assert len({row.lengths for row in rows}) == len(rows)
    assert len({attention.Case("documents", 2048, equal=8).row(seed) for seed in range(3)}) == 1


def test_cases_of_a_gpu_cover_the_sizes_and_quick_is_a_part():
    cases = attention.cases("cuda")
    assert {case.tokens for case in cases} == {2048 * 2**power for power in range(7)}
    assert {case.head_dim for case in cases if case.quick} == {64, 128}
    assert {case.mask for case in cases if case.quick} == {"spans", "documents", "one document"}
    assert {(c.mask, c.tokens) for c in cases if c.tokens <= 8192} >= {
        (mask, tokens) for mask in ("spans", "documents") for tokens in (2048, 4096, 8192)
    }
    assert sum(case.quick for case in cases) == 6  # a process each, of the 8 minutes of all
    assert len({case.name for case in cases}) == len(cases)


def test_decoding_is_verified_and_counted_in_bytes(monkeypatch):
    zeros = Provider("zeros", lambda q, *_: q * 0)
    monkeypatch.setattr(decode, "PROVIDERS", [*decode.PROVIDERS, zeros])
    found = lines(TINY_DECODE.run(CPU), decode.OPERATION)
    ours = found["ours torch"]
    assert ours.status == "ok" and ours.unit == "GB/s"
    # Keys and values of 20 + 3 tokens and 2 heads, queries and results of 2 x 4 heads; float32.
    least = (2 * 23 * 2 + 2 * 2 * 4) * 16 * 4
    assert ours.rate == pytest.approx(least / ours.timing.milliseconds / 1e6)
    assert found["zeros"].status == "failed" and found["zeros"].timing is None
    assert found["flash-attn 2"].reason == "needs a GPU"


def test_prefill_is_verified_and_counted_in_flops(monkeypatch):
    def causal_from_the_start(row, count):
        starts = row.visible[::count] - 1
        first = prefill_row([(number, 0, count) for number in range(len(starts))])
        return lambda *tensors: prefill_attention(*tensors, first)

    wrong = Provider("without history", causal_from_the_start)
    monkeypatch.setattr(prefill, "PROVIDERS", [*prefill.PROVIDERS, wrong])
    found = lines(TINY_PREFILL.run(CPU), prefill.OPERATION)
    ours = found["ours torch"]
    assert ours.status == found["SDPA dense mask"].status == "ok" and ours.unit == "TFLOP/s"
    # Of each of 3 x 9 tokens the history and the tokens up to itself; 4 heads of 16.
    pairs = 9 * (20 + 0 + 3) + 3 * 45
    assert ours.rate == pytest.approx(4 * 16 * 4 * pairs / ours.timing.milliseconds / 1e9)
    assert found["without history"].status == "failed"
    assert found["flash-attn 3"].reason == "needs a GPU"
