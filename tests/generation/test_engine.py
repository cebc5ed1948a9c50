"""Continuous batching: whatever comes when, each answer is that of the prompt alone."""

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.errors import UserError
from metamorph.generation import Engine, EngineOptions, Prompt, Sampling
from metamorph.generation.cache import KeyValueCache
from metamorph.generation.decode_step import DecodeStep
from metamorph.generation.engine import drain
from metamorph.generation.graphs import compiled_program, rehearse
from metamorph.generation.history import image_key
from metamorph.generation.job import Job
from metamorph.generation.sequence import Mode, Sequence
from metamorph.generation.slots import Slots
from metamorph.model.inference import RotaryTable, merge_projections
from metamorph_kernels import key_intervals
from tests.generation.tiny import (
    END,
    EOS,
    PAD,
    START,
    TOKENS,
    check_same,
    image_prompt,
    mixed_prompts,
    naive,
    order_of,
    tiny_model,
)

SEED = 5
BUDGETS = (1, 6, 19)
CONTEXT = 64


@lru_cache
def model():
    return tiny_model(SEED)


@lru_cache
def prompts() -> list[Prompt]:
    torch.manual_seed(0)
    return mixed_prompts()


@lru_cache
def expected(prompt: int, budget: int) -> dict:
    return naive(model(), prompts()[prompt], budget)


@dataclass(frozen=True)
class Arrival:
    round: int
    prompt: int
    budget: int
    cancelled_after: int | None  # rounds


ARRIVALS = st.builds(
    Arrival,
    st.integers(0, 12),
    st.integers(0, 5),
    st.sampled_from(BUDGETS),
    st.one_of(st.none(), st.none(), st.integers(0, 9)),
)
OPTIONS = st.builds(
    EngineOptions,
    slots=st.integers(1, 4),
    context=st.just(CONTEXT),
    read_every=st.integers(1, 5),
    prefill_chunk=st.integers(1, 20),
)


def run(engine: Engine, arrivals: list[Arrival]) -> list[Job]:
    jobs: dict[int, Job] = {}
    ends: dict[int, int] = {}
    for number in range(10_000):
        for index, arrival in enumerate(arrivals):
            if arrival.round == number:
                jobs[index] = engine.submit(prompts()[arrival.prompt],
                                            max_new_tokens=arrival.budget)  # fmt: skip
                if arrival.cancelled_after is not None:
                    ends[index] = number + arrival.cancelled_after
            if ends.get(index) == number:
                engine.cancel(jobs[index])
        engine.advance()
        if len(jobs) == len(arrivals) and all(job.finished for job in jobs.values()):
            return [jobs[index] for index in range(len(arrivals))]
    raise AssertionError("it never ends")


@settings(max_examples=40, deadline=None)
@given(st.lists(ARRIVALS, min_size=1, max_size=10), OPTIONS, st.integers(0, 2))
def test_any_arrivals_and_cancels(arrivals, options, ahead):
    """Continuous, chunked and late reading change nothing of an answer; a cancelled one is the
    beginning of the whole one."""
    engine = Engine(model(), options)
    engine.history.ahead = ahead
    for job, arrival in zip(run(engine, arrivals), arrivals, strict=True):
        whole, result = expected(arrival.prompt, arrival.budget), job.sequence.result()
        if result.finish_reason != "cancelled":
            check_same(result, whole)
        else:
            order = order_of(result)
            assert order == whole["order"][: len(order)]
        assert job.slot is None
    assert engine.active == 0 and not engine.waiting and not engine.reading


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_other_families_answer_with_a_cache_as_without_one(model_type):
    """Projections are merged; a prompt has a picture, and both are read in pieces."""
    other, few = tiny_model(SEED, model_type), prompts()[1:3]
    wanted = [naive(other, prompt, 7) for prompt in few]
    merge_projections(other)
    engine = Engine(other, EngineOptions(slots=2, context=CONTEXT, prefill_chunk=5))
    jobs = [engine.submit(prompt, max_new_tokens=7) for prompt in few]
    while not all(job.finished for job in jobs):
        engine.advance()
    for job, whole in zip(jobs, wanted, strict=True):
        check_same(job.sequence.result(), whole)


def test_a_conversation_goes_on_in_its_slot():
    """The next turn holds the first prompt and the answer to it: only what is new is read."""
    engine = Engine(model(), EngineOptions(slots=3, context=200, prefill_chunk=7))
    first = image_prompt([1, 2], 1, [3, START])
    job = engine.submit(first, max_new_tokens=12)
    drain(engine, [job])
    answer = job.sequence.result()
    (picture, *_) = answer.images
    token_ids = [*first.token_ids, *[PAD] * TOKENS, *answer.token_ids]
    places = [*first.visual_positions, *range(len(first), len(first) + TOKENS)]
    features = torch.cat([first.features, picture[None]])
    keys = [*first.image_keys, image_key(picture)]
    assert len(answer.images) == 1 and order_of(answer)[0] == "image"
    second = Prompt([*token_ids, 1, 2], places, features, image_keys=keys)
    other = engine.submit(Prompt([7, 3]), max_new_tokens=5)
    following = engine.submit(second, max_new_tokens=9)
    drain(engine, [other, following])
    # The last token of an answer was never fed.
    assert following.cached == len(token_ids) - 1
    check_same(following.sequence.result(), naive(model(), second, 9))
    check_same(other.sequence.result(), naive(model(), Prompt([7, 3]), 5))
    # Other pictures at the same places are another beginning.
    changed = Prompt([*token_ids, 1, 2], places, features.flip(0), image_keys=keys[::-1])
    third = engine.submit(changed, max_new_tokens=9)
    drain(engine, [third])
    assert third.cached == 3
    check_same(third.sequence.result(), naive(model(), changed, 9))


def test_images_without_keys_are_never_known_again():
    prompt = image_prompt([1, 2], 1, [3])
    unknown = Prompt(prompt.token_ids, prompt.visual_positions, prompt.features)
    engine = Engine(model(), EngineOptions(slots=1, context=CONTEXT))
    jobs = [engine.submit(one, max_new_tokens=4) for one in (unknown, unknown)]
    drain(engine, jobs)
    assert [job.cached for job in jobs] == [0, 3]


def test_an_image_that_sees_itself_whole_is_read_at_once():
    plain = image_prompt([1, 2], 2, [3])
    starts = plain.visual_positions[0], plain.visual_positions[TOKENS]
    spans = [(start, start + TOKENS) for start in starts]
    spanned = Prompt(plain.token_ids, plain.visual_positions, plain.features, spans,
                     plain.image_keys)  # fmt: skip
    fed = []

    def last_states(options) -> torch.Tensor:
        tiny = tiny_model(2)
        tiny.language.head = lambda states: (
            fed.append(states.clone()) or F.one_hot(torch.full((len(states),), EOS), 12)
        )
        engine = Engine(tiny, options)
        jobs = [engine.submit(one, max_new_tokens=1) for one in (plain, spanned, spanned)]
        for job in jobs:
            drain(engine, [job])
        # A causal image is no beginning of one that sees itself whole.
        assert jobs[1].cached <= 3 and jobs[2].cached in (0, len(plain) - 1)
        return fed[-1][0]

    with torch.no_grad():
        states = tiny_model(2)(
            torch.tensor(plain.token_ids),
            torch.arange(len(plain)),
            key_intervals([len(plain)], spans),
            plain.features,
            torch.tensor(plain.visual_positions),
        )
    for chunk in (1, 5, 6, 100):
        options = EngineOptions(slots=1, context=CONTEXT, prefill_chunk=chunk, read_every=1)
        torch.testing.assert_close(last_states(options), states[-1], atol=1e-4, rtol=1e-4)


def test_a_slot_that_knows_nothing_is_taken_before_a_conversation_is_forgotten():
    engine = Engine(model(), EngineOptions(slots=3, context=CONTEXT, read_every=1))
    jobs = [engine.submit(Prompt([1, 2, 3 + n]), max_new_tokens=3) for n in range(3)]
    engine.advance()
    taken = [job.slot for job in jobs]
    drain(engine, jobs)
    for prompt, slot, cached in (([7, 1], 0, 0), ([1, 2, 4], 1, 2), ([7, 1, 2], 0, 2)):
        job = engine.submit(Prompt(prompt), max_new_tokens=2)
        engine.advance()
        assert taken == [0, 1, 2] and (job.slot in (slot, None)) and job.cached == cached
        drain(engine, [job])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 11), min_size=40, max_size=40),  # what the head wishes
            st.integers(1, 30),  # budget
            st.one_of(st.none(), st.integers(0, 2)),  # most images
            st.booleans(),  # whether the prompt opens an image
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_machine_on_the_device_is_the_one_on_the_host(rows):
    """Step for step, for any wishes of the text head: what is emitted, who is alive, what is left
    of an image; no sequence sticks, and each image has all its vectors and its end."""
    tiny, count = model(), len(rows)
    slots = Slots.idle(count, tiny.config, torch.device("cpu"), torch.float32)
    cache = KeyValueCache.empty(tiny.config.language, count, CONTEXT, device=torch.device("cpu"),
                          dtype=torch.float32)  # fmt: skip
    rotary = RotaryTable(tiny.language, CONTEXT + 1, device=torch.device("cpu"),
                         dtype=torch.float32)  # fmt: skip
    step = DecodeStep(tiny, slots, cache, rotary, steps=40)
    sequences = [Sequence(tiny.config, budget, 1, opens) for _, budget, _, opens in rows]
    for row, (sequence, (_, budget, most, opens)) in enumerate(zip(sequences, rows, strict=True)):
        slots.set_request(row, Sampling(), torch.zeros(0, dtype=torch.int64), budget, most)
        if not sequence.finished:
            slots.wake(row, torch.ones(24), TOKENS + 1 if opens else 0)
    program = step.program(count, sampling=True)
    wishes = torch.tensor([wish for wish, *_ in rows])
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for now in range(40):
            logits = F.one_hot(wishes[:, now], 12).float()
            patch.setattr(tiny.language, "head", lambda states, logits=logits: logits)
            program()
            for row, sequence in enumerate(sequences):
                if sequence.finished:
                    continue
                token_id = int(step.tokens[now, row])
                if sequence.mode is Mode.IMAGE:
                    sequence.accept_vectors(step.vectors[now, row][None])
                elif sequence.mode is Mode.CLOSING:
                    assert token_id == END == sequence.close_image()
                else:
                    most, begun = rows[row][2], sequence.result().token_ids.count(START)
                    may = wishes[row, now] != START or most is None or begun < most
                    assert token_id == wishes[row, now] if may else token_id != START
                    sequence.accept_token(token_id)
                assert bool(slots.alive[row]) == (not sequence.finished)
                assert int(slots.left[row]) == {
                    Mode.TEXT: 0, Mode.CLOSING: 1, Mode.FINISHED: int(slots.left[row]),
                    Mode.IMAGE: sequence.missing + 1,
                }[sequence.mode]  # fmt: skip
    assert not slots.alive.any()  # 40 steps are more than any budget
    assert cache.lengths.max() <= 30


def test_an_image_limit_counts():
    engine = Engine(model(), EngineOptions(slots=2, context=CONTEXT))
    for most in (0, 1):
        job = engine.submit(prompts()[3], max_new_tokens=30, max_images=most)
        drain(engine, [job])
        assert len(job.sequence.result().images) <= most


def test_a_repetition_penalty_keeps_tokens_from_coming_again():
    engine = Engine(model(), EngineOptions(slots=1, context=CONTEXT))
    sampling = Sampling(repetition_penalty=100)
    job = engine.submit(Prompt([1, 2]), max_new_tokens=8, sampling=sampling, max_images=0)
    drain(engine, [job])
    token_ids = job.sequence.result().token_ids
    assert len(set(token_ids)) == len(token_ids) and not {1, 2} & set(token_ids)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=2.0, seed=7, repetition_penalty=1.3)]
)
def test_an_answer_begins_to_count_when_its_prompt_is_read(sampling):
    """Others take many steps before: it has its whole budget of tokens and images, the draws of its
    seed, and none of their tokens count as its own."""
    options = EngineOptions(slots=2, context=CONTEXT, read_every=1, prefill_chunk=1)
    engine = Engine(model(), options)
    settings = {"max_new_tokens": 19, "sampling": sampling, "max_images": 1}
    alone = engine.submit(prompts()[1], **settings)
    drain(engine, [alone])

    engine = Engine(model(), options)
    first = engine.submit(prompts()[0], max_new_tokens=1)  # leaves its slot to the newcomer
    other = engine.submit(prompts()[0], max_new_tokens=40, sampling=Sampling(temperature=3.0))
    drain(engine, [first])
    newcomer = engine.submit(prompts()[1], **settings)
    for _ in range(100):
        engine.advance()
    assert newcomer.finished and other.finished
    mine, its = newcomer.sequence.result(), alone.sequence.result()
    assert order_of(mine) == order_of(its) and mine.finish_reason == its.finish_reason


def test_a_sequence_that_is_not_finite_fails_alone():
    """It leaves nothing behind in its slot."""
    tiny = tiny_model(0)
    engine = Engine(tiny, EngineOptions(slots=2, context=CONTEXT))
    bad = image_prompt([1, 2], 1, [3])
    bad.features[:] = torch.nan
    jobs = [engine.submit(one, max_new_tokens=9) for one in (bad, Prompt([1, 2, 3]))]
    drain(engine, jobs)
    assert jobs[0].sequence.finish_reason == "error" and "NaN or infinite" in jobs[0].error
    check_same(jobs[1].sequence.result(), naive(tiny, Prompt([1, 2, 3]), 9))
    again = engine.submit(Prompt([1, 2, 4]), max_new_tokens=9)
    drain(engine, [again])
    check_same(again.sequence.result(), naive(tiny, Prompt([1, 2, 4]), 9))


def test_a_rehearsal_changes_nothing():
    """As before the capture of a CUDA graph, in the midst of answers."""
    engine = Engine(model(), EngineOptions(slots=3, context=CONTEXT))
    jobs = [engine.submit(prompts()[i], max_new_tokens=19) for i in (1, 3, 4)]
    with torch.no_grad():
        for number in range(40):
            rehearse(engine.step, engine.step.program(1 + number % 3, bool(number % 2)))
            engine.advance()
    for job, number in zip(jobs, (1, 3, 4), strict=True):
        check_same(job.sequence.result(), expected(number, 19))


def test_a_step_is_one_graph_of_torch_compile():
    """Nothing in it depends on values: a CUDA graph can hold it. So for each size, of which there
    are more than torch.compile takes of one function by itself."""
    torch._dynamo.reset()
    engine, plain = (Engine(model(), EngineOptions(slots=9, context=32)) for _ in range(2))
    for size in range(1, 10):
        backend = "aot_eager" if size == 2 else "eager"
        engine.programs.ready[size, size > 2] = compiled_program(
            engine.step.program(size, True), backend=backend
        )
        with torch.inference_mode():
            rehearse(engine.step, engine.programs.ready[size, size > 2])
    jobs = [
        [one.submit(prompts()[i], max_new_tokens=12) for i in (1, 3)] for one in (engine, plain)
    ]
    for one, mine in zip((engine, plain), jobs, strict=True):
        drain(one, mine)
    for job, other in zip(*jobs, strict=True):
        assert order_of(job.sequence.result()) == order_of(other.sequence.result())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots: expected a whole number, from 1 to 1024, got 0"),
        ({"context": 1}, "context: expected a whole number, at least 2"),
        ({"read_every": 0}, "read_every"),
        ({"prefill_chunk": 0}, "prefill_chunk"),
        ({"prefill_attention": "fp4"}, "prefill_attention: expected auto or fp8, got 'fp4'"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        EngineOptions(**options)


def test_what_is_longer_than_a_slot_is_refused():
    engine = Engine(model(), EngineOptions(slots=1, context=10))
    with pytest.raises(ValueError, match="its 4 tokens and 7 new ones are more than the 10"):
        engine.submit(Prompt([1, 2, 3, 4]), max_new_tokens=7)
    job = engine.submit(Prompt([1, 2, 3, 4]), max_new_tokens=6)
    drain(engine, [job])
    check_same(job.sequence.result(), naive(model(), Prompt([1, 2, 3, 4]), 6))


def test_attention_of_a_prompt_in_float8_is_close():
    torch.manual_seed(0)
    states = []
    for kind in ("auto", "fp8"):
        engine = Engine(model(), EngineOptions(slots=1, context=CONTEXT, prefill_attention=kind))
        engine.submit(prompts()[1], max_new_tokens=1)
        engine._admit()
        with torch.no_grad():
            engine._read_prompts()
        states.append(engine.step.slots.states[0].clone())
    assert 0.9 < F.cosine_similarity(*states, dim=0) < 1 - 1e-6
