import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import backends, cosine_loss, cuda_library, reference
from tests.kernels.comparisons import assert_as_good_as_plain, value_and_gradients


def pair(rows=5, width=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(2)
    ]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 33)])
def test_equals_reference_and_gradcheck(shape, reduction):
    prediction, target = pair(*shape)
    prediction[-1] *= 1e3
    ours, oracle = (
        value_and_gradients(lambda p, f=f: f(p, target, reduction=reduction), prediction)
        for f in (cosine_loss, reference.cosine_loss)
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)
    torch.autograd.gradcheck(
        lambda p: cosine_loss(p, target, reduction=reduction), prediction.requires_grad_()
    )


def test_by_hand():
    prediction = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    target = torch.tensor([[5.0, 0.0], [4.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    losses = cosine_loss(prediction, target, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0.0, 1.0, 2.0, 1 - 0.5**0.5]))
    torch.testing.assert_close(cosine_loss(prediction, target), losses.mean())
    torch.testing.assert_close(cosine_loss(prediction, target, reduction="sum"), losses.sum())


def test_target_takes_no_gradient():
    prediction, target = (tensor.requires_grad_() for tensor in pair())
    cosine_loss(prediction, target).backward()
    assert prediction.grad is not None and target.grad is None
    assert not cosine_loss(prediction.detach(), target).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_zeros_cost_one_and_pull_nowhere(dtype):
    prediction, target = pair(dtype=dtype)
    prediction[1], target[2] = 0, 0
    prediction[3], target[3] = 0, 0
    losses, gradient = value_and_gradients(
        lambda p: cosine_loss(p, target, reduction="none"), prediction
    )
    assert losses[1:4].eq(1).all() and gradient[1:4].eq(0).all()
    assert losses.isfinite().all() and gradient.isfinite().all()
    assert gradient[0].ne(0).any()


@pytest.mark.parametrize("size", [1e-37, 1e-22, 1e-18, 1e-13, 1e-6, 1e6, 1e15, 1e18, 1e30])
def test_finite_at_every_size(size):
    prediction, target = pair(dtype=torch.float32)
    losses, gradient = value_and_gradients(
        lambda p: cosine_loss(p, target, reduction="none"), prediction * size
    )
    assert losses.isfinite().all() and gradient.isfinite().all()
    if 1e-18 <= size <= 1e18:
        unscaled = value_and_gradients(
            lambda p: cosine_loss(p, target, reduction="none"), prediction
        )
        torch.testing.assert_close([losses, gradient * size], unscaled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_rows_give_exactly_zero(reduction):
    prediction = torch.zeros(0, 4, requires_grad=True)
    loss = cosine_loss(prediction, torch.zeros(0, 4), reduction=reduction)
    loss.backward()
    assert loss.item() == 0 and prediction.grad.shape == (0, 4)


INDEX = torch.tensor([2, -1, 0, 2, -100])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_index_equals_reference_and_gradcheck(reduction):
    prediction, target = pair()
    options = {"target_index": INDEX, "reduction": reduction}
    ours, oracle = (
        value_and_gradients(lambda p, f=f: f(p, target[:3], **options), prediction)
        for f in (cosine_loss, reference.cosine_loss)
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)
    torch.autograd.gradcheck(
        lambda p: cosine_loss(p, target[:3], **options), prediction.requires_grad_()
    )


def test_index_by_hand():
    prediction = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    target = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    index = torch.tensor([1, -1, 1, 0])
    losses = cosine_loss(prediction, target, target_index=index, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.0, 2.0, 1 - 0.5**0.5]))
    torch.testing.assert_close(
        cosine_loss(prediction, target, target_index=index), losses.sum() / 3
    )


def test_what_ignored_rows_hold_does_not_count():
    prediction, target = pair()
    prediction[1], target[0], target[4] = torch.nan, torch.inf, torch.nan
    index = torch.tensor([1, -1, 2, 3, -2])
    losses, gradient = value_and_gradients(
        lambda p: cosine_loss(p, target, target_index=index, reduction="none"), prediction
    )
    assert losses[[1, 4]].eq(0).all() and gradient[[1, 4]].eq(0).all()
    assert losses.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("side", ["prediction", "target"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_no_loss(side, value):
    prediction, target = pair()
    (prediction if side == "prediction" else target)[1, 2] = value
    for function in (cosine_loss, reference.cosine_loss):
        losses = function(prediction, target, reduction="none")
        assert losses.isnan().nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("rows", [0, 5])
def test_no_counted_row_gives_exactly_zero(rows, targets):
    prediction, target = pair(rows), pair(targets)
    for function in (cosine_loss, reference.cosine_loss):
        for reduction in ("mean", "sum"):
            index = torch.full((rows,), -1)
            loss, gradient = value_and_gradients(
                lambda p, f=function, i=index, r=reduction: f(
                    p, target[1], target_index=i, reduction=r
                ),
                prediction[0],
            )
            assert loss.item() == 0 and torch.equal(gradient, torch.zeros_like(prediction[0]))


def test_dtypes_of_the_result():
    for dtype, wide in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ]:
        prediction, target = pair(dtype=dtype)
        loss, gradient = value_and_gradients(lambda p, t=target: cosine_loss(p, t), prediction)
        assert loss.dtype == wide and gradient.dtype == dtype
    assert cosine_loss(pair()[0].float(), pair()[1].bfloat16()).dtype == torch.float32


def test_bfloat16_is_as_good_as_plain_bfloat16():
    prediction, target = pair(64, 96)
    assert_as_good_as_plain(
        lambda p, t: cosine_loss(p, t, reduction="none"),
        lambda p, t: 1 - F.cosine_similarity(p, t.detach(), dim=-1),
        prediction,
        target,
    )


def test_compiled_equals_eager():
    compiled = torch.compile(cosine_loss, fullgraph=True, backend="aot_eager")
    prediction, target = pair(dtype=torch.float32)
    for options in ({}, {"target_index": INDEX}):
        eager, traced = (
            value_and_gradients(lambda p, f=f, o=options: f(p, target, **o), prediction)
            for f in (cosine_loss, compiled)
        )
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": torch.ones(5)}, r"prediction: .*\[N, C\].*got \[5\]"),
        ({"target": torch.ones(5, 6)}, r"target: .*\[5, 7\], got \[5, 6\]"),
        ({"target": torch.ones(5, 7).long()}, "target: .*got torch.int64"),
        ({"target": torch.ones(5, 7, device="meta")}, "target: expected device cpu.*got meta"),
        ({"target": None}, "target: expected a tensor, got NoneType"),
        ({"reduction": "average"}, "reduction: .*got 'average'"),
        ({"impl": "numpy"}, "impl: cosine_loss takes 'auto', 'triton', .*'torch', got 'numpy'"),
        ({"target_index": [0] * 5}, "target_index: expected a tensor, got list"),
        ({"target_index": INDEX.int()}, "target_index: expected torch.int64, got torch.int32"),
        ({"target_index": INDEX.to("meta")}, "target_index: expected device cpu, got meta"),
        ({"target_index": INDEX[:4]}, r"target_index: .*\[5\], got \[4\]"),
        ({"target_index": INDEX + 3}, "target_index: expected less than 5, .*got 5"),
        ({"target_index": INDEX, "target": torch.ones(3, 6)}, r"target: .*\[M, C\] = \[any, 7\]"),
    ],
)
def test_refuses(change, words):
    prediction, target = pair(dtype=torch.float32)
    with pytest.raises(ValueError, match=words):
        cosine_loss(**({"prediction": prediction, "target": target} | change))


@pytest.fixture
def fake_kernels(monkeypatch):
    """What the CUDA library computes, in PyTorch, and a list of what it was asked for."""
    calls = []

    def cosine_rows(prediction, target, target_index, *, with_gradient, mean):
        calls.append(("rows", with_gradient, mean))
        leaf = prediction.detach().requires_grad_()
        options = {"target_index": target_index, "impl": "torch"}
        with torch.enable_grad():
            total = cosine_loss(leaf, target, reduction="mean" if mean else "sum", **options)
        total.backward()
        dtype = torch.float32 if leaf.dtype == torch.float16 else leaf.dtype
        losses = cosine_loss(prediction.detach(), target, reduction="none", **options)
        return losses, leaf.grad.to(dtype)

    def scale_in_place(values, factor):
        calls.append(("scale in place",))
        values.mul_(factor)

    monkeypatch.setattr(cuda_library, "cosine_rows", cosine_rows)
    monkeypatch.setattr(cuda_library, "scale_in_place", scale_in_place)
    monkeypatch.setattr(backends, "cuda_absence", lambda device_type: None)
    return calls


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_is_asked_once_for_losses_and_gradient(fake_kernels, dtype, reduction, indexed):
    target = torch.randn(4, 6, dtype=dtype)
    index = torch.tensor([1, -1, 3, 0]) if indexed else None
    results = []
    for impl in ("cuda", "torch"):
        prediction = torch.linspace(-2, 3, 24, dtype=dtype).view(4, 6).requires_grad_()
        loss = cosine_loss(prediction, target, target_index=index, reduction=reduction, impl=impl)
        (loss * 0.75).sum().backward()
        results.append((loss.detach(), prediction.grad))
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(*results, **tolerance)
    in_place = reduction != "none" and dtype == torch.float32
    expected = [("rows", True, reduction == "mean")] + [("scale in place",)] * in_place
    assert fake_kernels == expected
    cosine_loss(prediction.detach(), target, target_index=index, reduction=reduction, impl="cuda")
    assert fake_kernels[-1] == ("rows", False, False)
