import pytest
import torch
from bench_cases import TINY_ATTENTION, TINY_DECODE, few_repeats  # noqa: F401

from bench import attention, decode, peers, verification
from bench.documents import PackedRow, packed_row
from bench.verification import LARGEST_ERROR, error_bound, exact_attention, relative_error
from metamorph_kernels import interval_attention, reference

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.usefixtures("few_repeats"),
]


def lines(results, operation):
    return {result.provider: result for result in results if result.operation == operation}


def test_exact_attention_is_the_definition(monkeypatch):
    monkeypatch.setattr(verification, "QUERIES_AT_ONCE", 5)  # parts that cut documents and spans
    intervals = PackedRow((4, 9, 1, 8), ((1, 3), (6, 12), (15, 22))).intervals(CPU)
    leaves = [torch.randn(22, heads, 6).double().requires_grad_() for heads in (4, 2, 2)]
    out_gradient = torch.randn(22, 4, 6).double()
    out = reference.interval_attention(*leaves, intervals)
    expected = (out, *torch.autograd.grad(out, leaves, out_gradient))
    for one, other in zip(exact_attention(*leaves, out_gradient, intervals), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_no_bound_forgives_a_wrong_yardstick_or_a_nan():
    assert error_bound(1e-3, "bfloat16") == pytest.approx(2e-3, rel=0.02)
    assert error_bound(0.5, "bfloat16") == LARGEST_ERROR["bfloat16"]
    poisoned = torch.ones(130, 2, 4)
    poisoned[129, 1, 3] = float("nan")
    assert not relative_error(poisoned, torch.ones(130, 2, 4)) <= 1e9


def test_one_wrong_row_does_not_drown():
    exact = torch.randn(10_000, 2, 8)
    actual = exact.clone()
    assert relative_error(actual, exact) == 0
    actual[777, 1] *= 2
    assert relative_error(actual, exact) > 0.05


def test_an_entry_verifies_and_times_all_that_runs_here():
    results = TINY_ATTENTION.run(CPU)
    forward, backward = (lines(results, operation) for operation in attention.OPERATIONS)
    names = {provider.name for provider in peers.PROVIDERS}
    assert set(forward) == set(backward) == names
    for name in ("ours torch", "ours fp8", "FlexAttention", "SDPA dense mask"):
        assert forward[name].status == "ok" and forward[name].rate > 0, forward[name]
    for name in ("ours torch", "SDPA dense mask"):
        assert backward[name].status == "ok"
    assert (forward["ours fp8"].unit, forward["ours torch"].unit) == ("TFLOP/s fp8", "TFLOP/s")
    assert forward["flash-attn 2"].status == backward["ours fp8"].status == "absent"
    assert lines(results, attention.MASK)["FlexAttention"].status == "ok"


def wrong(row, device):
    intervals = row.intervals(device)
    return lambda q, k, v: 1.1 * interval_attention(q, k, v, intervals, impl="torch")


def wrong_backward(row, device):
    def attend(q, k, v):
        out = interval_attention(q, k, v, row.intervals(device), impl="torch")
        if out.requires_grad:
            out.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        return out

    return attend


def crashes(row, device):
    raise RuntimeError("no such kernel\nand a long story")


def test_what_fails_or_is_wrong_becomes_a_line_and_is_not_timed(monkeypatch):
    providers = [
        peers.Provider(function.__name__, function, lambda device: None)
        for function in (wrong, wrong_backward, crashes)
    ]
    [ours] = [provider for provider in peers.PROVIDERS if provider.name == "ours torch"]
    monkeypatch.setattr(peers, "PROVIDERS", (*providers, ours))
    results = TINY_ATTENTION.run(CPU)
    forward, backward = (lines(results, operation) for operation in attention.OPERATIONS)
    assert forward["wrong"].status == backward["wrong"].status == "failed"
    assert forward["wrong"].reason.startswith("wrong: error 1.0e-01, bound ")
    assert forward["wrong_backward"].status == "ok"
    assert backward["wrong_backward"].reason.startswith("wrong: error nan")
    assert forward["crashes"].reason == "RuntimeError: no such kernel"
    assert backward["ours torch"].status == "ok"
    for line in (*forward.values(), *backward.values()):
        assert (line.timing is None) == (line.status != "ok")


@pytest.mark.parametrize("row", [packed_row(700, "spans"), packed_row(700, "one document")])
def test_visible_blocks(row):
    intervals = row.intervals(CPU)
    mask = reference.interval_mask(intervals)
    padded = torch.zeros(768, 768, dtype=torch.bool)
    padded[:700, :700] = mask
    blocks = padded.unflatten(0, (6, 128)).unflatten(2, (6, 128)).any(3).any(1)
    assert torch.equal(attention.visible_blocks(intervals, 128), blocks)


def test_cases_of_a_gpu_cover_the_sizes_and_quick_is_a_part():
    cases = attention.cases("cuda")
    assert {case.tokens for case in cases} == {4096 * 2**power for power in range(6)}
    assert {case.head_dim for case in cases if case.quick} == {64, 128}
    assert {case.mask for case in cases if case.quick} == {"spans", "documents", "one document"}
    assert len({case.name for case in cases}) == len(cases)


def test_decoding_is_verified_and_counted_in_bytes(monkeypatch):
    monkeypatch.setitem(decode.PROVIDERS, "zeros", (lambda device: None, lambda q, *_: q * 0))
    found = lines(TINY_DECODE.run(CPU), decode.OPERATION)
    ours = found["ours torch"]
    assert ours.status == "ok" and ours.unit == "GB/s"
    # Keys and values of 20 + 3 tokens and 2 heads, queries and results of 2 x 4 heads; float32.
    least = (2 * 23 * 2 + 2 * 2 * 4) * 16 * 4
    assert ours.rate == pytest.approx(least / ours.timing.milliseconds / 1e6)
    assert found["zeros"].status == "failed" and found["zeros"].timing is None
    assert found["flash-attn 2"].reason == "needs a GPU"


def test_a_probe_names_what_is_missing():
    probe = peers.gpu_package("no_such_package.inner")
    assert probe(CPU) == "needs a GPU"
    assert probe(torch.device("cuda")) == "not installed"
    assert peers.gpu_package("torch.no_such_module")(torch.device("cuda")).startswith("ModuleNotF")
    assert peers.gpu_package("torch")(torch.device("cuda")) is None
