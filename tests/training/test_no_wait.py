"""Forward and backward of a step never ask the device anything: the host only queues work."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metamorph.data.conversation import ChatEncoder
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.data.toy.tasks import make_task
from metamorph.model.opening import open_model
from metamorph.model.precision import convert_to_float8
from metamorph.training.batch import Batch
from metamorph.training.language_stage import batch_losses
from metamorph.training.trainable import choose_trainable
from tests.tiny_run import tiny_config

# All operators of a step. None reads a number on the host, selects by a mask or indexes by one.
ALLOWED = """
    _safe_softmax _softmax_backward_data _to_copy _unsafe_view add add_ addmm addmm_ alias arange
    bmm cat clone convolution copy_ cos detach div embedding embedding_dense_backward empty_like eq
    exp_ expand gather ge gelu gelu_backward index_add index_copy index_fill index_select
    linalg_vector_norm logsumexp lt masked_fill_ mean mm mul mul_ native_layer_norm ne neg
    new_empty new_zeros ones ones_like permute pow promote_types reciprocal rsqrt rsub
    scalar_tensor scatter_ select silu silu_backward sin slice split split_with_sizes squeeze sub
    sub_ sum t transpose tril unsqueeze upsample_bilinear2d view where zeros zeros_like
""".split()


class Operators(TorchDispatchMode):
    """The names of all operators that run, and a list of those that copy between devices."""

    def __init__(self):
        super().__init__()
        self.names, self.copies = set(), []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        name = function._schema.name.removeprefix("aten::")
        self.names.add(name)
        tensors = [value for value in (*arguments, result) if isinstance(value, torch.Tensor)]
        if len({tensor.device for tensor in tensors if tensor.ndim}) > 1:
            self.copies.append(name)
        return result


@pytest.fixture
def step(folder):
    """A function that runs forward and backward on a device, from a batch that is there."""
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    choose_trainable(model, "instruct")
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)

    def prepare(device, kinds):
        tasks = [make_task(0, i, "train", kinds) for i in range(6)]
        row = pack_row([encoder.encode(task.sample) for task in tasks], 400, 0)
        model.to(device)
        batch, counts = Batch.of(row, model.vision, device), TargetCounts.of([row])

        def run():
            losses, targets = batch_losses(model, batch, counts)
            (losses.text + losses.visual).backward()
            return losses, targets

        return model, run

    return prepare


KINDS = [{"question": 1.0, "draw": 1.0, "edit": 1.0, "text": 1.0}, {"text": 1.0}]


@pytest.mark.parametrize("kinds", KINDS, ids=["images", "text"])
def test_a_step_runs_where_no_number_can_be_read(step, kinds):
    """Meta tensors have shapes and no numbers: what would wait for a GPU raises on them."""
    model, run = step(torch.device("meta"), kinds)
    with Operators() as operators:
        losses, _ = run()
    assert losses.text.is_meta and losses.visual.is_meta
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert operators.names <= set(ALLOWED), sorted(operators.names - set(ALLOWED))
    assert operators.copies == []


def test_a_step_in_float8_runs_there_too(step):
    model, run = step(torch.device("meta"), KINDS[0])
    assert convert_to_float8(model, "native").converted
    losses, _ = run()
    assert losses.text.is_meta
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits_raises_on_meta_tensors(wait):
    with pytest.raises((NotImplementedError, RuntimeError)):
        wait(torch.ones(3, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kinds", KINDS, ids=["images", "text"])
def test_a_step_on_a_gpu_does_not_wait(step, kinds):
    _, run = step(torch.device("cuda"), kinds)
    run()  # kernels are compiled and chosen
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
