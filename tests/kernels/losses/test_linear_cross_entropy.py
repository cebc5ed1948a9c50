import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import LinearCrossEntropy, linear_cross_entropy, reference
from metamorph_kernels.losses import chunks, cross_entropy
from tests.kernels.comparisons import Record, assert_as_good_as_plain, value_and_gradients

LABELS = torch.tensor([1, 10, -100, 3, 0, -100, 5])


def inputs(rows=7, width=5, vocabulary=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((rows, width), (vocabulary, width))
    ]


@pytest.fixture(params=[1, 22, 33, 2**26], ids=lambda logits: f"{logits}-at-once")
def logits_at_once(request, monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", request.param)
    return request.param


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_equals_reference_and_gradcheck(logits_at_once, reduction):
    ours, oracle, torch_own = (
        value_and_gradients(lambda x, w, f=f: f(x, w), *inputs())
        for f in (
            lambda x, w: linear_cross_entropy(x, w, LABELS, reduction=reduction),
            lambda x, w: reference.linear_cross_entropy(x, w, LABELS, reduction=reduction),
            lambda x, w: F.cross_entropy(x @ w.t(), LABELS, reduction=reduction),
        )
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, torch_own, rtol=1e-10, atol=1e-12)
    if logits_at_once == 22:
        torch.autograd.gradcheck(
            lambda x, w: linear_cross_entropy(x, w, LABELS, reduction=reduction),
            [tensor.requires_grad_() for tensor in inputs()],
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("label_smoothing", "z_loss"), [(0.1, 0.0), (1.0, 0.0), (0.0, 0.3), (0.2, 0.01)]
)
def test_label_smoothing_and_z_loss(monkeypatch, reduction, label_smoothing, z_loss):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 22)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours, oracle = (
        value_and_gradients(lambda x, w, f=f: f(x, w, LABELS, z_loss=z_loss, **options), *inputs())
        for f in (linear_cross_entropy, reference.linear_cross_entropy)
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)
    if z_loss == 0:
        torch_own = value_and_gradients(
            lambda x, w: F.cross_entropy(x @ w.t(), LABELS, **options), *inputs()
        )
        torch.testing.assert_close(ours, torch_own, rtol=1e-10, atol=1e-12)


def test_two_backward_passes_over_one_graph_give_the_same_gradients():
    x, weight = (tensor.requires_grad_() for tensor in inputs())
    loss = linear_cross_entropy(x, weight, LABELS)
    first = torch.autograd.grad(loss, (x, weight), 2 * torch.ones_like(loss), retain_graph=True)
    second = torch.autograd.grad(loss, (x, weight))
    torch.testing.assert_close(first, tuple(2 * gradient for gradient in second))


def test_large_logits_stay_exact():
    x, weight = inputs()
    ours, oracle = (
        value_and_gradients(lambda x, w, f=f: f(x, w, LABELS), 300 * x, weight)
        for f in (linear_cross_entropy, reference.linear_cross_entropy)
    )
    torch.testing.assert_close(ours, oracle)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("columns", [(4,), (10,), range(11)], ids=["one", "the label", "all"])
def test_numbers_that_are_none_show_as_in_pytorch(value, columns):
    weight = torch.linspace(-1, 1, 11)[:, None].clone()
    weight[list(columns)] = value
    rows, labels = cross_entropy._Rows(0.0, 0.0, "torch"), torch.tensor([10])
    losses, gradient = rows.losses(torch.ones(1, 1), weight, labels, torch.ones(1))
    logits = weight.t().clone().requires_grad_()
    expected = F.cross_entropy(logits, labels)
    expected.backward()
    torch.testing.assert_close(losses[0], expected.detach(), equal_nan=True)
    torch.testing.assert_close(gradient, logits.grad, equal_nan=True)


def test_logits_are_never_whole(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 4 * 100)
    x, weight = (tensor.requires_grad_() for tensor in inputs(64, 6, 100))
    with Record() as record:
        linear_cross_entropy(x, weight, torch.arange(64)).backward()
    assert record.elements <= 100 * 6  # the weight is larger than the 4 x 100 logits of a chunk


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_the_gradient_of_a_chunk_is_let_go_before_the_next(monkeypatch, reduction):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 22)
    gradients, losses = [], cross_entropy._Rows.losses

    def watched(*arguments):
        assert all(gradient() is None for gradient in gradients)
        row_losses, gradient = losses(*arguments)
        gradients.extend([] if gradient is None else [weakref.ref(gradient)])
        return row_losses, gradient

    monkeypatch.setattr(cross_entropy._Rows, "losses", watched)
    x, weight = (tensor.requires_grad_() for tensor in inputs())
    linear_cross_entropy(x, weight, LABELS, reduction=reduction).sum().backward()
    assert len(gradients) == 4  # 7 rows, two at a time


PEAK_MEMORY = """
import torch
from metamorph_kernels import linear_cross_entropy
from metamorph_kernels.losses import chunks

chunks.LOGITS_AT_ONCE //= 4  # for a quarter of the rows of a training step
x = torch.zeros(1024, 64, requires_grad=True)
weight = torch.zeros(128_258, 64, requires_grad=True)
labels = torch.arange(1024)
def peak():  # of this program alone: ru_maxrss begins with that of whoever started it
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0])

peaks = [peak()]
linear_cross_entropy(x, weight, labels).backward()
peaks.append(peak())
x.grad = weight.grad = None
torch.nn.functional.cross_entropy(x @ weight.t(), labels).backward()
peaks.append(peak())
print(*peaks)
"""


@pytest.mark.slow
def test_a_large_vocabulary_needs_a_quarter_of_the_memory_of_whole_logits():
    """In a process of its own, ours first: what a process had at its peak can only grow."""
    environment = os.environ | {"PYTHONPATH": str(Path(cross_entropy.__file__).parents[2])}
    command = [sys.executable, "-c", PEAK_MEMORY]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, ours, whole = map(int, shown.stdout.split())
    assert 0 < ours - before < 0.25 * (whole - before), shown.stdout


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("wants_x", "wants_weight"), [(True, False), (False, True), (True, True)])
def test_multiplies_only_for_gradients_that_are_wanted(wants_x, wants_weight, reduction):
    x, weight = inputs()
    x.requires_grad_(wants_x)
    weight.requires_grad_(wants_weight)
    with Record() as record:
        linear_cross_entropy(x, weight, LABELS, reduction=reduction).sum().backward()
    logits = 2 if reduction == "none" else 1  # how often they are computed
    assert record.products == logits + wants_x + wants_weight
    assert (x.grad is not None) == wants_x and (weight.grad is not None) == wants_weight


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [0, 7])
def test_nothing_to_count_gives_zero_and_gradients_of_zeros(rows, reduction):
    x, weight = (tensor.requires_grad_() for tensor in inputs(rows))
    labels = torch.full((rows,), -100)
    loss = linear_cross_entropy(x, weight, labels, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_ignored_rows_have_no_part():
    x, weight = inputs()
    losses, x_gradient, _ = value_and_gradients(
        lambda x, w: linear_cross_entropy(x, w, LABELS, reduction="none"), x, weight
    )
    assert losses[[2, 5]].eq(0).all() and x_gradient[[2, 5]].eq(0).all()
    kept = LABELS != -100
    mean = linear_cross_entropy(x, weight, LABELS)
    torch.testing.assert_close(mean, F.cross_entropy(x[kept] @ weight.t(), LABELS[kept]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_float32_losses_and_its_own_gradients(dtype):
    loss, *gradients = value_and_gradients(
        lambda x, w: linear_cross_entropy(x, w, LABELS), *inputs(dtype=dtype)
    )
    assert loss.dtype == torch.float32 and {grad.dtype for grad in gradients} == {dtype}


def test_weight_gradient_adds_up_in_float32(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 3)  # one row at a time
    x = torch.ones(600, 1, dtype=torch.bfloat16)
    weight = torch.zeros(3, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(x, weight, torch.zeros(600).long(), reduction="sum").backward()
    expected = torch.tensor([[-400], [200], [200]]).bfloat16()
    assert torch.equal(weight.grad, expected)  # in bfloat16 the sum would stall near 128


def test_bfloat16_is_as_good_as_plain_bfloat16(logits_at_once):
    x, weight = inputs(60, 32, 80)
    labels = torch.arange(60)
    assert_as_good_as_plain(
        lambda x, w: linear_cross_entropy(x, w, labels, reduction="none"),
        lambda x, w: F.cross_entropy((x @ w.t()).float(), labels, reduction="none"),
        x,
        0.3 * weight,
    )


def test_compiled_equals_eager_also_under_autocast(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 22)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    tensors = inputs(dtype=torch.float32)
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            eager, traced = (
                value_and_gradients(lambda x, w, f=f: f(x, w, LABELS), *tensors)
                for f in (linear_cross_entropy, compiled)
            )
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)
        assert all(value.dtype == torch.float32 for value in eager)


def test_autocast_keeps_logits_in_float32():
    x, weight = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, LABELS)
    rounded = (tensor.bfloat16().double() for tensor in (x, weight))
    expected = reference.linear_cross_entropy(*rounded, LABELS)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_module():
    module = LinearCrossEntropy(5, 11, reduction="sum", dtype=torch.float64)
    assert list(module.state_dict()) == ["weight"]
    x, _ = inputs()
    expected = reference.linear_cross_entropy(x, module.weight, LABELS, reduction="sum")
    torch.testing.assert_close(module(x, LABELS), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(7)}, r"x: .*\[N, H\].*got \[7\]"),
        ({"weight": torch.ones(11, 4)}, r"weight: .*\[any, 5\], got \[11, 4\]"),
        ({"weight": torch.ones(0, 5)}, r"weight: expected at least one class, got \[0, 5\]"),
        ({"weight": torch.ones(11, 5).half()}, "weight: .*got torch.float16"),
        ({"weight": torch.ones(11, 5, device="meta")}, "weight: expected device cpu.*got meta"),
        ({"labels": LABELS.int()}, "labels: expected torch.int64, got torch.int32"),
        ({"labels": LABELS[:6]}, r"labels: .*\[7\], got \[6\]"),
        ({"labels": LABELS.to("meta")}, "labels: expected device cpu, got meta"),
        ({"labels": LABELS.where(LABELS != 3, 11)}, "labels: expected 0 to 10 or -100, got 11"),
        ({"labels": LABELS.where(LABELS != 3, -1)}, "labels: expected 0 to 10 or -100, got -1"),
        ({"label_smoothing": 1.5}, "label_smoothing: expected 0 to 1, got 1.5"),
        ({"z_loss": -0.1}, "z_loss: expected 0 or more, got -0.1"),
        ({"reduction": "max"}, "reduction: .*got 'max'"),
        ({"impl": "cuda"}, "impl: linear_cross_entropy takes 'auto', 'triton', 'torch', got"),
    ],
)
def test_refuses(change, words):
    x, weight = inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=words):
        linear_cross_entropy(**({"x": x, "weight": weight, "labels": LABELS} | change))
