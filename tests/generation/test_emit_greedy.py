"""What a greedy step emits in C++ is what it emits in PyTorch, to the last bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.generation.cache import KeyValueCache
from metamorph.generation.decode_step import DecodeStep
from metamorph.generation.slots import UNLIMITED, Slots
from metamorph.model.inference import RotaryTable
from metamorph_kernels import cpp_absence, emit_greedy_cpp
from tests.generation.tiny import START, TOKENS, tiny_model

ABSENCE = cpp_absence("cpu")
pytestmark = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))
CPU, ROWS, SLOTS, STEPS = torch.device("cpu"), 5, 6, 3
MODEL = tiny_model(0)
VOCABULARY = MODEL.config.language.vocab_size


def step_at(seed: int) -> DecodeStep:
    """A step somewhere in answers: in text, in images and at their ends, with and without room."""
    language = MODEL.config.language
    slots = Slots.idle(SLOTS, MODEL.config, CPU, torch.float32)
    cache = KeyValueCache.empty(language, SLOTS, 9, device=CPU, dtype=torch.float32)
    rotary = RotaryTable(MODEL.language, 10, device=CPU, dtype=torch.float32)
    step, generator = DecodeStep(MODEL, slots, cache, rotary, STEPS), torch.Generator()
    generator.manual_seed(seed)
    bounds = {slots.alive: 2, slots.left: TOKENS + 2, slots.room: 2 * TOKENS, cache.lengths: 9}
    for tensor, bound in bounds.items():
        tensor.random_(0, bound, generator=generator)
    slots.left[seed % SLOTS] = 0
    slots.images.fill_(UNLIMITED)
    step.cursor.fill_(seed % STEPS)
    return step


def all_tensors(step: DecodeStep) -> list[torch.Tensor]:
    return [step.slots.counts, step.cache.lengths, step.cursor, step.tokens, step.best,
            step.vectors]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_it_is_the_step_in_pytorch(seed, data):
    values = st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, math.nan])
    some = data.draw(st.lists(values, min_size=VOCABULARY * ROWS, max_size=VOCABULARY * ROWS))
    logits = torch.tensor(some).view(ROWS, VOCABULARY)
    logits[seed % ROWS, START] = 3.0
    vectors = torch.randn(ROWS, MODEL.config.visual_width)
    ours, plain = step_at(seed), step_at(seed)
    fed = []
    for step in (ours, plain):
        slots, cache = step.slots.narrow(ROWS), step.cache.narrow(ROWS)
        history = [tensor[:, :ROWS] for tensor in (step.tokens, step.best, step.vectors)]
        if step is plain:
            chosen = step._choose(logits, slots, sampling=False)
            fed.append(step._emit(slots, cache, history, *chosen, vectors))
        else:
            state = step.effects, step.image_end, slots.counts, cache.lengths, step.cursor
            fed.append(emit_greedy_cpp(logits, vectors, *state, *history))
    for one, other in zip(fed[0], fed[1], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    for one, other in zip(all_tensors(ours), all_tensors(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("vocabulary", [1, 15, 16, 17, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("worst", [-1.0, math.nan])
def test_the_first_of_the_largest_wherever_it_stands(vocabulary, worst):
    logits = torch.full((4, vocabulary), -2.0)
    logits[1, vocabulary // 2 :] = 1.0
    logits[2, -1] = -worst
    logits[3, vocabulary // 3] = worst
    arguments = arguments_of(logits)
    token, *_ = emit_greedy_cpp(*arguments)
    best, chosen = logits.max(dim=-1)
    assert torch.equal(token, chosen)
    torch.testing.assert_close(arguments[-2][0], best, rtol=0, atol=0, equal_nan=True)


def arguments_of(logits: torch.Tensor) -> list:
    rows, vocabulary = logits.shape
    return [logits, torch.ones(rows, 3), torch.zeros(2, vocabulary, dtype=torch.int64), 0,
            torch.zeros(5, rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64), torch.zeros(2, rows, dtype=torch.int64),
            torch.zeros(2, rows), torch.zeros(2, rows, 3)]  # fmt: skip


def test_opcheck():
    op = torch.ops.metamorph_cpu_ops.emit_greedy.default
    torch.library.opcheck(op, tuple(arguments_of(torch.ones(4, 7))))


@pytest.mark.parametrize(
    ("place", "argument", "message"),
    [
        (0, torch.ones(4, 7).double(), "logits: expected Float, got Double"),
        (1, torch.ones(3, 3), "vectors: expected size 4 in dimension 0, got 3"),
        (2, torch.ones(2, 6, dtype=torch.int64), "effects: expected size 7 in dimension 1"),
        (3, 7, "image_end: expected 0 to 6, got 7"),
        (6, torch.tensor([2]), "cursor: expected 0 to 1, got 2"),
        (9, torch.ones(2, 4, 2), "vectors_history: expected size 3 in dimension 2, got 2"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_written(place, argument, message):
    arguments = arguments_of(torch.ones(4, 7))
    arguments[place] = argument
    with pytest.raises(RuntimeError, match=message):
        emit_greedy_cpp(*arguments)
    assert not any(tensor.any() for tensor in arguments[7:9])
