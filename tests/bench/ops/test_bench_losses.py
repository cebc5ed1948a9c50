import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from bench_cases import (
    TINY_COSINE,
    TINY_LINEAR_COSINE,
    TINY_POOL,
    TINY_TEXT_LOSS,
)

from bench.harness.providers import Provider, compiled, ours
from bench.harness.trials import forward_and_backward, largest_error
from bench.ops import cosine, mlp, pooling, text_loss
from bench.runs import entries
from metamorph_kernels import cosine_loss, reference
from metamorph_kernels.absence import triton_absence

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("few_repeats")
MODULES = (cosine, mlp, text_loss, pooling)


def lines(results, operation):
    return {result.provider: result for result in results if result.operation == operation}


IN_GRAPH = replace(TINY_COSINE, in_graph=True)
COSINE = cosine.COSINE_PROVIDERS, (cosine.FORWARD, cosine.BACKWARD, cosine.WEIGHTED)


@pytest.mark.parametrize(
    ("case", "providers", "operations"),
    [
        (TINY_COSINE, *COSINE),
        (IN_GRAPH, *COSINE),
        (TINY_LINEAR_COSINE, cosine.LINEAR_PROVIDERS, (cosine.LINEAR,)),
        (TINY_TEXT_LOSS, text_loss.PROVIDERS, (text_loss.OPERATION,)),
        (TINY_POOL, pooling.PROVIDERS, (pooling.OPERATION,)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_entry_verifies_and_times_all_that_runs_here(case, providers, operations):
    names = {provider.name for provider in providers}
    if case is TINY_LINEAR_COSINE:
        names.add(cosine.BARE_PRODUCTS)
    results = case.run(CPU)
    assert {result.operation for result in results} == set(operations)
    for operation in operations:
        found = lines(results, operation)
        assert set(found) == names
        present = {name for name, line in found.items() if line.status != "absent"}
        assert present >= names & {"ours torch", "eager", cosine.BARE_PRODUCTS}
        for name in present:
            assert found[name].status == "ok" and found[name].rate > 0, found[name]


def test_who_is_absent_says_why(monkeypatch):
    found = {result.provider: result for result in TINY_TEXT_LOSS.run(CPU)}
    for name in ("Liger", "Liger float32 sums", "cut-cross-entropy", "QuACK on all rows"):
        assert found[name].reason == "needs a GPU"
    assert found["torch.compile"].reason == "compiled on a GPU only"
    assert compiled(F.normalize).absence(torch.device("cuda")) is None
    triton, cuda, torch_ = ours(cosine_loss, "triton", "cuda", "torch")
    assert triton.absence(CPU) == triton_absence("cpu")
    assert cuda.absence(CPU) is not None and torch_.absence(CPU) is None
    [chunked] = [p for p in text_loss.LOSSES if p.name == "torch linear_cross_entropy"]
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    assert chunked.absence(CPU) == f"torch {torch.__version__} has none"


class _Leaky(torch.autograd.Function):
    """The right loss with a gradient that also reaches what does not count."""

    @staticmethod
    def forward(ctx, x, weight, labels):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(x @ weight.t(), labels)
        ctx.gradients = torch.autograd.grad(loss, (x, weight))
        return loss.detach()

    @staticmethod
    def backward(ctx, gradient):
        x_gradient, weight_gradient = ctx.gradients
        return x_gradient + 1e-3, weight_gradient, None


def test_what_fails_or_is_wrong_becomes_a_line_and_is_not_timed(monkeypatch):
    def crashes(*tensors):
        raise RuntimeError("no such kernel\nand a long story")

    def shifted(prediction, target):
        return cosine_loss(prediction, target.roll(1, 0), impl="torch")

    def half_gradient(prediction, target):
        return cosine_loss((prediction + prediction.detach()) / 2, target, impl="torch")

    wrong = [Provider(f.__name__, f) for f in (crashes, shifted, half_gradient)]
    monkeypatch.setattr(cosine, "COSINE_PROVIDERS", wrong + ours(cosine_loss, "torch"))
    for in_graph in (False, True):
        results = replace(TINY_COSINE, in_graph=in_graph).run(CPU)
        forward, backward = (lines(results, name) for name in (cosine.FORWARD, cosine.BACKWARD))
        assert forward["crashes"].reason == "RuntimeError: no such kernel"
        assert forward["shifted"].reason.startswith("wrong: error ")
        assert forward["half_gradient"].status == "ok"
        assert backward["half_gradient"].reason.startswith("wrong: error 5.0e-01, bound ")
        assert backward["ours torch"].status == "ok"
        for line in results:
            assert (line.timing is None) == (line.status != "ok")

    leaky = Provider("leaky", text_loss.of_all_rows(_Leaky.apply))
    monkeypatch.setattr(text_loss, "PROVIDERS", [leaky])
    [line] = TINY_TEXT_LOSS.run(CPU)
    assert line.status == "failed" and line.reason.startswith("wrong: error")


def test_the_exact_text_loss_is_the_definition(monkeypatch):
    monkeypatch.setattr(text_loss, "ROWS_AT_ONCE", 7)
    inputs = TINY_TEXT_LOSS.inputs(CPU, seed=0)
    labels, rows, row_labels = inputs.constants
    assert torch.equal(labels[rows], row_labels) and (labels >= 0).sum() == len(rows) == 30
    assert (rows.diff() > 0).all()
    of_all_rows = text_loss.of_all_rows(reference.linear_cross_entropy)
    expected = forward_and_backward(of_all_rows, inputs.double())
    for one, other in zip(text_loss.exact_text_loss(inputs), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_work_is_counted_by_what_has_to_be_done():
    # Two float32 tensors of 70 x 24 for the forward, and the gradient.
    assert TINY_COSINE.least_bytes(cosine.FORWARD) == 2 * 70 * 24 * 4
    for operation in (cosine.BACKWARD, cosine.WEIGHTED):
        assert TINY_COSINE.least_bytes(operation) == 3 * 70 * 24 * 4
    # A multiplication and an addition for each element of each of three products.
    assert TINY_LINEAR_COSINE.flops == 3 * 2 * 70 * 16 * 24
    assert TINY_TEXT_LOSS.flops == 3 * 2 * 30 * 8 * 100
    # 8 x 8 of 9 x 9 tokens have a weight; 4 x 4 are written, of three images.
    weights = reference.pool(torch.eye(81)[None], 4)[0]
    assert weights.any(0).sum() == 64
    assert TINY_POOL.least_bytes == 3 * (64 + 16) * 24 * 4


def test_cases_of_a_gpu_and_those_that_rehearse_them():
    every = [case for module in MODULES for case in module.cases("cuda")]
    assert {case.name for case in every if case.quick} == {
        "cosine-65536",
        "linear-cosine-16384",
        "mlp-16384-1152",
        "text-loss-16384-128258",
        "pool-256",
    }
    assert {case.dtype for case in every} == {torch.bfloat16}
    assert {case.name for case in every} <= entries.entries("cuda").keys()
    assert len({case.name for case in every}) == len(every)
    for module in MODULES:
        rehearsed = {type(case) for case in module.cases("cpu") if case.quick}
        assert rehearsed == {type(case) for case in module.cases("cuda")}


@pytest.fixture
def fake(monkeypatch):
    """Puts a module in the place of a peer: fake(name, member=...)."""

    def put(name, **members):
        for end in [i for i, letter in enumerate(name) if letter == "."] + [len(name)]:
            monkeypatch.setitem(sys.modules, name[:end], ModuleType(name[:end]))
        vars(sys.modules[name]).update(members)

    return put


def test_liger_distils_from_a_teacher_whose_logits_are_the_target(fake):
    class Distillation:
        def __init__(self, weight_hard_loss, weight_soft_loss, beta):
            assert (weight_hard_loss, weight_soft_loss, beta) == (0, 1, 1)

        def __call__(self, student, weight, teacher, teacher_weight, labels, bias):
            assert labels.dtype == torch.int64 and (labels != -100).all()
            logits = teacher @ teacher_weight.t()
            return reference.linear_cosine_loss(student, weight, bias, logits)

    fake("liger_kernel.chunked_loss", LigerFusedLinearCosineSimilarityLoss=Distillation)
    inputs = TINY_LINEAR_COSINE.inputs(CPU, seed=0)
    exact = forward_and_backward(reference.linear_cosine_loss, inputs.double())
    assert largest_error(forward_and_backward(cosine._liger, inputs), exact) < 1e-5


def test_peers_of_the_text_loss_get_what_their_functions_take(fake):
    def liger(input, weight, target, accum_dtype=None):
        return F.cross_entropy(F.linear(input, weight), target)

    def cut(e, c, targets, filter_eps="high"):
        assert filter_eps is None
        return liger(e, c, targets)

    class Quack(torch.nn.Linear):
        def __init__(self, in_features, out_features, chunk_size, device):
            super().__init__(in_features, out_features, bias=False, device=device)

        def forward(self, input, target):
            return liger(input, self.weight, target)

    fake("liger_kernel.transformers.functional", liger_fused_linear_cross_entropy=liger)
    fake("cut_cross_entropy", linear_cross_entropy=cut)
    fake("quack.linear_cross_entropy", LinearCrossEntropy=Quack)
    text_loss._quack_module.cache_clear()
    inputs = TINY_TEXT_LOSS.inputs(CPU, seed=0)
    exact = text_loss.exact_text_loss(inputs)
    peers = [p for p in text_loss.PROVIDERS if p.absence(CPU) == "needs a GPU"]
    assert len(peers) == 8
    for peer in peers:
        assert largest_error(forward_and_backward(peer.method, inputs), exact) < 1e-5, peer.name
    text_loss._quack_module.cache_clear()


def test_half_a_loss_has_half_the_gradient():
    inputs = TINY_COSINE.inputs(CPU, seed=0)
    loss = partial(cosine_loss, impl="torch")
    whole, half = (forward_and_backward(f, inputs) for f in (loss, cosine._halved(loss)))
    torch.testing.assert_close(half, tuple(result / 2 for result in whole))
