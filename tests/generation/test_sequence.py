"""The state machine of one sequence, without a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.generation.sequence import ImageSegment, Mode, Sequence, TextSegment
from metamorph.model import LanguageConfig, MetaMorphConfig

START, END, EOS, OTHER_EOS = 4, 5, 6, 7
CONFIG = MetaMorphConfig(
    language=LanguageConfig(4, 4, 1, 1, vocab_size=8),
    visual_width=3,
    grid=2,
    image_start_id=START,
    image_end_id=END,
    eos_ids=[EOS, OTHER_EOS],
    pad_id=0,
)


def drive(sequence: Sequence, wishes: list[int], at_once: int = 1) -> list:
    """Run the sequence to its end; in text mode take the next wish, EOS when none is left. Vectors
    come so many `at_once`, or the last of an image."""
    wishes = list(wishes)
    emitted = []
    while sequence.mode is not Mode.FINISHED:
        if sequence.mode is Mode.TEXT:
            token_id = wishes.pop(0) if wishes else EOS
            if sequence.accept_token(token_id):
                emitted.append(token_id)
        elif sequence.mode is Mode.IMAGE:
            indices = sequence.accept_vectors(torch.full((min(at_once, sequence.missing), 3), 1.0))
            emitted += ["v"] * len(indices)
        else:
            emitted.append(sequence.close_image())
    return emitted


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 7), max_size=30), st.integers(1, 40), st.booleans(), st.integers(1, 5)
)
def test_whatever_the_text_head_wishes(wishes, budget, opens_image, at_once):
    sequence = Sequence(CONFIG, budget, token_forwards=3, opens_image=opens_image)
    emitted = drive(sequence, wishes, at_once)
    result = sequence.result()

    assert len(emitted) == result.steps <= budget
    assert [entry for entry in emitted if entry != "v"] == result.token_ids
    text = "".join("v" if entry == "v" else "se"[entry == END] if entry in (START, END) else "."
                   for entry in emitted)  # fmt: skip
    opened = ("s" if opens_image else "") + text
    assert opened.count("vvvv") == len(result.images) == text.count("v") / 4
    assert opened.count("svvvve") == len(result.images)
    assert all(image.shape == (4, 3) for image in result.images)
    assert not any(entry in (EOS, OTHER_EOS) for entry in emitted[:-1])
    if result.finish_reason == "stop":
        assert emitted[-1] in (EOS, OTHER_EOS)
    else:
        assert result.finish_reason == "length"
        assert result.steps == budget or result.steps + 6 > budget
    kinds = [type(segment) for segment in result.segments]
    assert all(not (a is b is TextSegment) for a, b in zip(kinds, kinds[1:], strict=False))


@pytest.mark.parametrize(("budget", "images"), [(5, 0), (6, 1), (7, 1)])
def test_an_image_needs_room_for_its_brackets(budget, images):
    sequence = Sequence(CONFIG, budget, token_forwards=1)
    drive(sequence, [START])
    result = sequence.result()
    assert len(result.images) == images
    assert result.finish_reason == ("stop" if budget == 7 else "length")
    assert result.steps == {5: 0, 6: 6, 7: 7}[budget]


@pytest.mark.parametrize(("budget", "images"), [(4, 0), (5, 1)])
def test_a_prompt_that_opened_the_image_needs_only_its_end(budget, images):
    sequence = Sequence(CONFIG, budget, token_forwards=1, opens_image=True)
    drive(sequence, [])
    assert len(sequence.result().images) == images
    assert sequence.result().finish_reason == "length"
    assert sequence.result().token_ids == [END] * images


def test_vectors_keep_their_order():
    sequence = Sequence(CONFIG, 10, token_forwards=1, opens_image=True)
    vectors = torch.randn(4, 3)
    indices = [sequence.accept_vectors(part) for part in vectors.split([1, 2, 1])]
    assert indices == [range(0, 1), range(1, 3), range(3, 4)]
    assert sequence.mode is Mode.CLOSING
    (segment,) = sequence.segments
    assert isinstance(segment, ImageSegment) and torch.equal(segment.features, vectors)
