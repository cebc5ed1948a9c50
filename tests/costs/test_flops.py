"""The FLOP formulas against torch's own counter, which watches the operators that run.

The counter sees all of our CPU paths but one: a product that adds in place, which the text loss
uses for its weight gradient and which the test tells it. It does not see Triton's kernels. Nor does
it know masks: it counts the whole square of a document, so the square is what it is compared with.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from metamorph.costs.flops import (
    ATTENTION,
    PROJECTIONS,
    PROJECTOR,
    TEXT_HEAD,
    VISION_HEAD,
    Workload,
    causal_pairs,
    encoder_flops,
    language_flops,
    repeated_flops,
    trained_parts,
)
from metamorph.training.trainable import choose_trainable
from metamorph_kernels import key_intervals
from tests.costs.random_step import ROW, STAGES, random_model


def product_in_place(shape, left, right, *_, out_shape=None, **__):
    return 2 * left[0] * left[1] * right[1]


def count(function):
    """(result of a function, what torch's counter saw of it)."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: product_in_place}
    )
    # As plain products: the counter does not know the CPU's own attention kernel.
    with sdpa_kernel(SDPBackend.MATH), counter:
        result = function()
    return result, counter.get_total_flops()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("seed", "model_type"), [*((seed, "llama") for seed in range(4)), (0, "qwen2"), (1, "qwen3")]
)
def test_formulas_equal_the_counter_forward_and_backward(seed, model_type, stage):
    model = random_model(seed, model_type=model_type)
    choose_trainable(model, stage)
    features = torch.randn(ROW.images, 4, 24)
    squares = sum(length * length for length in ROW.lengths)
    work = replace(ROW.workload(model), visible_pairs=squares)
    parts = language_flops(model.config, work, trained_parts(model))

    loss, forward = count(lambda: ROW.loss(model, features))
    _, backward = count(loss.backward)
    text = parts.pop(TEXT_HEAD)  # its gradients are computed beside its loss
    assert forward == text.total + sum(part.forward for part in parts.values())
    assert backward == sum(part.backward for part in parts.values())


@pytest.mark.parametrize("images", [0, 1, 3])
def test_the_encoder_equals_the_counter(images):
    vision = random_model(0).vision
    assert len(vision.tokens_read) == 16  # of 81
    _, seen = count(lambda: vision(torch.randn(images, 3, 36, 36)))
    assert encoder_flops(vision, images).forward == seen


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("language", {PROJECTIONS, TEXT_HEAD}),
        ("align", {PROJECTOR}),
        ("instruct", {PROJECTIONS, TEXT_HEAD, PROJECTOR, VISION_HEAD}),
    ],
)
def test_frozen_parts_take_no_weight_gradient(stage, trained):
    model = random_model(1)
    choose_trainable(model, stage)
    assert trained_parts(model) == trained
    parts = language_flops(model.config, ROW.workload(model), trained)
    for name in (PROJECTIONS, VISION_HEAD, TEXT_HEAD):
        assert parts[name].backward == parts[name].forward * (2 if name in trained else 1)
    assert (parts[PROJECTOR].backward > 0) == (PROJECTOR in trained)


def test_visible_pairs_are_those_of_the_mask():
    intervals = key_intervals([5, 1, 9])
    pairs = (intervals.row_end - intervals.row_start).sum().item()
    assert causal_pairs([5, 1, 9]) == pairs == 15 + 1 + 45


def test_what_is_repeated():
    parts = language_flops(random_model(0).config, ROW.workload(random_model(0)), {PROJECTIONS})
    attention = parts[ATTENTION].forward
    assert repeated_flops(parts, "none") == repeated_flops(parts, "selective") == 1.5 * attention
    full = repeated_flops(parts, "full") - repeated_flops(parts, "none")
    assert full == parts[PROJECTIONS].forward + attention


def test_workloads_add_up():
    assert Workload(1, 2, 3, 4, 5) + Workload(1, 1, 1, 1, 1) * 2 == Workload(3, 4, 5, 6, 7)
