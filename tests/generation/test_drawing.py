"""Pictures of many answers through one decoder: each is what it would be if it were drawn alone."""

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.decoder.denoising import noise_generator
from metamorph.decoder.samplers import sampler
from metamorph.errors import UserError
from metamorph.generation.drawing import DrawingFailed, DrawingQueue, UnfitDrawing, check_drawing
from metamorph.generation.events import DrawingProgress, ImageDrawn
from metamorph.generation.settings import DrawingSettings
from tests.tiny_run import tiny_decoder, tiny_one_pass

DECODER = tiny_decoder()
FEATURES = torch.nn.functional.normalize(
    torch.randn(4, 4, 24, generator=torch.Generator().manual_seed(0)), dim=-1
)
BROKEN = len(FEATURES)  # the number of features that cannot be drawn
OWN = DrawingSettings()  # of the decoder: 2 steps
WAYS = (
    OWN,
    DrawingSettings(num_inference_steps=3, preview_every=1),
    DrawingSettings(guidance_scale=1.0),
    DrawingSettings(scheduler="euler", guidance_rescale=0.7, guidance_interval=(0.0, 0.5)),
)


def features(which: int) -> torch.Tensor:
    return FEATURES[0] * torch.nan if which == BROKEN else FEATURES[which]


@cache
def alone(which: int, seed: int, number: int, way: DrawingSettings) -> np.ndarray:
    """The pixels of a picture that is drawn on its own."""
    [picture] = DECODER.draw(
        FEATURES[which : which + 1],
        **way.arguments(),
        generator=[noise_generator(seed, number)],
    )
    return np.asarray(picture, int)


def drawn_to_the_end(queue: DrawingQueue) -> list:
    events = []
    while queue:
        events += queue.advance()
    assert queue.advance() == []
    return events


def add(queue: DrawingQueue, key, which=0, number=0, way=OWN, seed=0) -> None:
    queue.add(features(which), seed=seed, number=number, settings=way, key=key)


ARRIVAL = st.tuples(
    st.integers(0, 3),  # of which answer
    st.integers(0, BROKEN),
    st.sampled_from(WAYS),
    st.integers(0, 1),  # seed
)
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 3))
ACTIONS = st.lists(st.one_of(ARRIVAL, ARRIVAL, st.just("advance"), CANCEL), max_size=24)


@settings(max_examples=30, deadline=None)
@given(ACTIONS, st.integers(1, 3))
def test_each_picture_is_the_one_drawn_alone_whatever_comes_and_goes(actions, most):
    queue = DrawingQueue(DECODER, most)
    expected, events, begun = {}, defaultdict(list), defaultdict(int)

    def advance():
        for key, event in queue.advance():
            assert (key, event.number) in expected  # what was cancelled is not heard of again
            events[key, event.number].append(event)

    for action in actions:
        if action == "advance":
            advance()
        elif action[0] == "cancel":
            queue.cancel(action[1])
            for picture in list(expected):
                finished = any(not isinstance(e, DrawingProgress) for e in events[picture])
                if picture[0] == action[1] and not finished:
                    del expected[picture]
        else:
            key, which, way, seed = action
            number = begun[key]
            begun[key] += 1
            add(queue, key, which, number, way, seed)
            expected[key, number] = which, seed, number, way
    while queue:
        advance()
    for picture, (which, seed, number, way) in expected.items():
        *progress, last = events[picture]
        if which == BROKEN:
            assert isinstance(last, DrawingFailed) and "NaN" in last.error
            continue
        steps = way.num_inference_steps or 2
        assert [(event.step, event.steps) for event in progress] == [
            (step + 1, steps) for step in range(steps)
        ]
        assert isinstance(last, ImageDrawn)
        apart = np.abs(np.asarray(last.picture, int) - alone(which, seed, number, way))
        assert apart.max() <= 1


def test_pictures_of_equal_settings_share_a_batch_up_to_the_most(monkeypatch):
    rows, forward = [], DECODER.unet.forward
    monkeypatch.setattr(
        DECODER.unet, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest)
    )
    queue = DrawingQueue(DECODER, 2)
    for key, way in enumerate(
        (WAYS[2], OWN, WAYS[2], WAYS[2], DrawingSettings(num_inference_steps=2))
    ):
        add(queue, key, way=way)
    assert len(queue) == 5
    finished = [key for key, event in drawn_to_the_end(queue) if isinstance(event, ImageDrawn)]
    # The first brings the third along; the second the last, which asks for the decoder's own.
    assert finished == [0, 2, 1, 4, 3]
    assert rows == [2, 2, 4, 4, 1, 1]  # with guidance a picture takes two rows


def test_one_step_a_call_with_previews_on_the_way():
    queue = DrawingQueue(DECODER)
    add(queue, "answer", way=WAYS[1], number=5)
    first, second, third = queue.advance(), queue.advance(), queue.advance()
    assert [len(first), len(second), len(third), len(queue)] == [1, 1, 2, 0]
    for [(key, event)] in (first, second):
        assert (key, event.number, event.preview.size) == ("answer", 5, (64, 64))
    assert [type(event) for _, event in third] == [DrawingProgress, ImageDrawn]
    assert third[0][1].preview is None


def test_a_picture_that_cannot_be_drawn_costs_its_neighbours_nothing():
    queue = DrawingQueue(DECODER)
    for key, which in enumerate((1, BROKEN, 2)):
        add(queue, key, which)
    events = drawn_to_the_end(queue)
    [failed] = [event for key, event in events if key == 1 and isinstance(event, DrawingFailed)]
    assert failed.error.startswith("picture 1 of the answer cannot be drawn: the decoder's pixels")
    for key, which in ((0, 1), (2, 2)):
        steps = [e.step for k, e in events if k == key and isinstance(e, DrawingProgress)]
        assert steps == [1, 2]  # once each, though it was drawn twice
        [drawn] = [e for k, e in events if k == key and isinstance(e, ImageDrawn)]
        assert np.array_equal(drawn.picture, alone(which, 0, 0, OWN))


def test_a_batch_too_large_for_the_memory_is_drawn_one_by_one(monkeypatch):
    forward = DECODER.unet.forward

    def small(sample, *rest):
        if len(sample) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(sample, *rest)

    monkeypatch.setattr(DECODER.unet, "forward", small)
    queue = DrawingQueue(DECODER)
    for key in range(3):
        add(queue, key)
    assert [k for k, e in drawn_to_the_end(queue) if isinstance(e, ImageDrawn)] == [0, 1, 2]
    monkeypatch.setattr(DECODER.unet, "forward", lambda *_: small(torch.zeros(3)))
    add(queue, "one")
    [(key, failed)] = drawn_to_the_end(queue)
    assert key == "one" and failed.error.endswith("cannot be drawn: CUDA out of memory.")


def test_more_steps_than_the_noise_schedule_has_cost_their_picture_alone(monkeypatch):
    short = sampler("dpm++", DDPMScheduler(num_train_timesteps=10).config)
    monkeypatch.setattr(DECODER, "scheduler", short)
    queue = DrawingQueue(DECODER)
    add(queue, "many", way=DrawingSettings(num_inference_steps=11))
    add(queue, "few")
    (key, failed), *others = drawn_to_the_end(queue)
    assert key == "many" and failed.error.endswith("steps: expected at most 10, got 11")
    assert isinstance(others[-1][1], ImageDrawn)


def test_steps_that_an_open_decoder_cannot_take_are_refused_before_anything_is_answered():
    for fits in (OWN, DrawingSettings(999), DrawingSettings(1000, scheduler="ddim")):
        check_drawing(DECODER, fits)
    with pytest.raises(
        UnfitDrawing, match="1000 steps of this sampler would take a timestep"
    ) as error:
        check_drawing(DECODER, DrawingSettings(1000))
    assert error.value.field == "num_inference_steps"


def test_a_mistake_in_the_code_is_not_taken_for_a_picture_that_failed(monkeypatch):
    monkeypatch.setattr(DECODER, "_decode", None)
    queue = DrawingQueue(DECODER)
    add(queue, "answer")
    queue.advance()
    with pytest.raises(TypeError):
        queue.advance()


def test_features_of_another_width_are_refused_at_once():
    queue = DrawingQueue(DECODER)
    with pytest.raises(ValueError, match=r"features must be \[tokens, 24\], got \(4, 23\)"):
        queue.add(torch.zeros(4, 23), seed=0, number=0, settings=OWN, key=0)
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        DrawingQueue(DECODER, 0)


def test_a_decoder_that_draws_in_one_pass():
    """A picture a step, the same for every seed; steps and guidance are refused by a sentence."""
    decoder = tiny_one_pass()
    queue = DrawingQueue(decoder)
    for number, seed in enumerate((0, 0, 7)):
        add(queue, "one", which=number % 2, number=number, seed=seed)
    events = queue.advance()
    drawn = [event for _, event in events if isinstance(event, ImageDrawn)]
    assert [event.number for event in drawn] == [0, 1, 2] and not queue
    expected = decoder.draw(FEATURES[:2])
    for event, picture in zip(drawn, [*expected, expected[0]], strict=True):
        np.testing.assert_allclose(np.asarray(event.picture, int), np.asarray(picture, int), atol=1)
    for way, what in (
        (DrawingSettings(num_inference_steps=20), "no steps, got 20"),
        (DrawingSettings(guidance_scale=3.0), "no guidance, got 3.0"),
        (DrawingSettings(scheduler="ddim"), "no sampler, got 'ddim'"),
        (DrawingSettings(guidance_rescale=0.5), "no guidance rescale, got 0.5"),
        (DrawingSettings(guidance_interval=(0, 0.5)), r"no guidance interval, got \(0, 0.5\)"),
    ):
        with pytest.raises(UserError, match=f"the decoder draws in one pass and takes {what}"):
            add(queue, "other", way=way)
    add(queue, "other", way=DrawingSettings(num_inference_steps=1, guidance_scale=1.0))
    assert len(queue.advance()) == 2


def test_a_decoder_that_draws_in_one_pass_shows_what_another_is_going_to_draw():
    """Before the first step, to those who asked for previews, who get no other."""
    preview = tiny_one_pass()
    queue = DrawingQueue(DECODER, 2, preview)
    for key, way in enumerate((WAYS[1], OWN, WAYS[1], DrawingSettings(preview_every=2), WAYS[1])):
        add(queue, key, which=key % 4, number=key, way=way)
    queue.cancel(4)
    shown = [*queue.advance(), *queue.advance()]
    assert [(key, e.number, e.step, e.steps) for key, e in shown] == [
        (0, 0, 0, 3), (2, 2, 0, 3), (3, 3, 0, 2),
    ]  # fmt: skip
    for (_, event), picture in zip(shown, preview.draw(FEATURES[[0, 2, 3]]), strict=True):
        np.testing.assert_allclose(np.asarray(event.preview, int), np.asarray(picture, int), atol=1)
    later = drawn_to_the_end(queue)
    assert all(e.step > 0 and e.preview is None for _, e in later if isinstance(e, DrawingProgress))
    drawn = {key: e.picture for key, e in later if isinstance(e, ImageDrawn)}
    assert sorted(drawn) == [0, 1, 2, 3]
    apart = np.abs(np.asarray(drawn[2], int) - alone(2, 0, 2, WAYS[1]))
    assert apart.max() <= 1


def test_a_preview_that_fails_costs_its_neighbours_nothing(caplog):
    queue = DrawingQueue(DECODER, preview=tiny_one_pass())
    for key, which in enumerate((1, BROKEN, 2)):
        add(queue, key, which, way=WAYS[1])
    shown = queue.advance()
    assert [key for key, event in shown if event.preview is not None] == [0, 2] and len(shown) == 2
    [said] = caplog.messages
    assert said.startswith("no preview: the decoder's pixels are NaN")


def test_a_preview_that_fails_is_logged_and_keeps_no_picture_from_being_drawn(monkeypatch, caplog):
    preview = tiny_one_pass()

    def too_large(features):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(preview, "draw", too_large)
    queue = DrawingQueue(DECODER, preview=preview)
    add(queue, "one", way=WAYS[1])
    events = drawn_to_the_end(queue)
    assert [type(e) for _, e in events] == [*[DrawingProgress] * 3, ImageDrawn]
    assert "no preview: CUDA out of memory." in caplog.text
