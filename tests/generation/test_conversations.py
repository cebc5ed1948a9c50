"""Conversations: several turns, several pictures, the model's own among them, and their events."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.errors import UserError
from metamorph.generation import (
    AnswerSettings,
    Drawing,
    DrawingSettings,
    EngineOptions,
    Message,
    Sampling,
    question,
)
from metamorph.generation.assistant import Assistant
from metamorph.generation.events import (
    DrawingProgress,
    Finished,
    ImageDrawn,
    ImageFeatures,
    ImageProgress,
    ImageStarted,
    TextPiece,
)
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER
from metamorph.model import assemble
from tests.page_folder import let_draw
from tests.tiny_run import GRID, tiny_decoder, write_language, write_vision

TOKENS = GRID**2
RED, BLUE = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
DRAW = question("Draw something.")
ROOM = AnswerSettings(TOKENS + 5, drawing=DrawingSettings(num_inference_steps=2))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(a model whose every answer is one picture, one that says anything, tokenizer)."""
    folder = tmp_path_factory.mktemp("parts")
    language, vision = write_language(folder / "llama"), write_vision(folder / "siglip")
    (draws, tokenizer), (speaks, _) = (assemble(language, vision, grid=GRID) for _ in range(2))
    let_draw(draws)
    with torch.no_grad():
        for parameter in speaks.language.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # so that what it says depends on what it read
        for token_id in (*speaks.config.eos_ids, speaks.config.image_start_id):
            speaks.language.lm_head.weight[token_id] = 0
    return draws, speaks, tokenizer


def drawing(parts, **options) -> Assistant:
    draws, _, tokenizer = parts
    return Assistant(draws, tokenizer, tiny_decoder(), options=EngineOptions(**options))


def speaking(parts, **options) -> Assistant:
    _, speaks, tokenizer = parts
    return Assistant(speaks, tokenizer, options=EngineOptions(**options))


def test_events_tell_how_a_picture_comes_about(parts):
    with_previews = replace(ROOM, drawing=DrawingSettings(num_inference_steps=3, preview_every=2))
    events = list(drawing(parts).stream([DRAW], with_previews))
    kinds = [type(event) for event in events]
    assert kinds == [
        ImageStarted, *[ImageProgress] * TOKENS, ImageFeatures, *[DrawingProgress] * 3, ImageDrawn,
        Finished,
    ]  # fmt: skip
    assert events[0] == ImageStarted(0, TOKENS)
    assert [e.done for e in events if isinstance(e, ImageProgress)] == list(range(1, TOKENS + 1))
    assert [(e.step, e.steps) for e in events if isinstance(e, DrawingProgress)] == [
        (1, 3), (2, 3), (3, 3),
    ]  # fmt: skip
    previews = [event.preview for event in events if isinstance(event, DrawingProgress)]
    assert [preview is not None for preview in previews] == [False, True, False]
    [reply] = drawing(parts).generate([[DRAW]], with_previews)
    assert [type(part) for part in reply.parts] == [Drawing]
    features = next(event for event in events if isinstance(event, ImageFeatures)).features
    assert torch.equal(features, reply.features[0]) and features.shape == (TOKENS, 24)
    drawn = next(event for event in events if isinstance(event, ImageDrawn)).picture
    assert drawn.tobytes() == reply.pictures[0].tobytes()
    assert events[-1].usage == reply.usage and reply.usage.images == 1
    assert reply.usage.answer_tokens == TOKENS + 3  # its brackets and the end of the turn


def test_text_events_are_the_reply(parts):
    asked, long = [question("What is it?", RED)], AnswerSettings(30)
    *pieces, last = speaking(parts).stream(asked, long)
    assert all(isinstance(piece, TextPiece) for piece in pieces) and len(pieces) > 3
    [reply] = speaking(parts).generate([asked], long)
    assert "".join(piece.text for piece in pieces).strip() == reply.text
    assert (last.reason, reply.finish_reason) == ("length", "length")


def test_the_next_turn_reads_what_is_new(parts):
    chat = drawing(parts)
    conversation = [Message(SYSTEM, "You draw."), question("What is this? Draw it.", RED)]
    [first] = chat.generate([conversation], ROOM)
    conversation += [first.message, question("And this?", BLUE)]
    [second] = chat.generate([conversation], ROOM)
    # All that was read and fed: but for the token that ended the answer.
    known = first.usage.prompt_tokens + first.usage.answer_tokens - 1
    assert second.usage.cached_tokens == known < second.usage.prompt_tokens
    [fresh] = drawing(parts).generate([conversation], ROOM)
    assert fresh.usage.cached_tokens == 0
    torch.testing.assert_close(second.features[0], fresh.features[0], atol=1e-4, rtol=1e-4)


def test_an_own_picture_is_read_as_its_features_or_again(parts):
    chat = drawing(parts)
    [first] = chat.generate([[DRAW]], ROOM)
    conversation = [DRAW, first.message, question("Again.")]
    seen = []
    chat.model.encoder.register_forward_hook(lambda *call: seen.append(call))
    [kept] = chat.generate([conversation], ROOM)
    assert not seen and kept.usage.cached_tokens > 0
    [again] = chat.generate([conversation], ROOM, reencode=True)
    assert len(seen) == 1
    assert again.usage.cached_tokens < first.usage.prompt_tokens + 2 < kept.usage.cached_tokens
    bare = Message(ASSISTANT, (Drawing(first.features[0]),))
    [same] = chat.generate([[DRAW, bare, question("Again.")]], ROOM)
    torch.testing.assert_close(same.features[0], kept.features[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="a drawing without pixels cannot be read again"):
        chat.generate([[DRAW, bare, question("Again.")]], ROOM, reencode=True)
    wrong = Message(ASSISTANT, (Drawing(torch.ones(3, 5)),))
    with pytest.raises(UserError, match=r"features \[3, 5\], but the model's are \[4, 24\]"):
        chat.generate([[DRAW, wrong, question("Again.")]], ROOM)


def test_pictures_stand_where_they_are_in_a_turn(parts):
    chat = speaking(parts)
    orders = [
        (RED, "first", BLUE, "then"), (BLUE, "first", RED, "then"), ("first then", RED, BLUE),
        (RED, BLUE, "first then"),
    ]  # fmt: skip
    documents = [chat.reader.document([Message(USER, order)]) for order in orders]
    assert len({tuple(document.token_ids) for document in documents[1:]}) == 3
    assert documents[0].token_ids == documents[1].token_ids
    (red, blue), other, *rest = (chat.reader.prompt(one, False).features for one in documents)
    assert not torch.equal(red, blue)
    assert torch.equal(other, torch.stack([blue, red]))
    assert all(torch.equal(features, torch.stack([red, blue])) for features in rest)
    assert question("<image>first<image>then", RED, BLUE).parts == orders[0]


def test_text_that_looks_like_a_placeholder_is_text(parts):
    chat = speaking(parts)
    plain = chat.reader.document([Message(USER, "what is <image> here?")])
    assert not plain.spans
    assert "<image>" in chat.encoder.tokenizer.decode(plain.token_ids)
    beside = chat.reader.document([Message(USER, (RED, "what is <image> here?"))])
    assert len(beside.spans) == 1


def test_a_picture_is_encoded_once(parts):
    chat, seen = speaking(parts), []
    chat.model.encoder.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    for _ in range(2):
        chat.generate([[question("What?", RED, BLUE, RED.copy())]], AnswerSettings(2))
    assert seen == [1, 1]


def test_pictures_of_equal_numbers_and_other_palettes_are_other_pictures(parts):
    chat = speaking(parts)
    pictures = [picture.quantize(2) for picture in (RED, BLUE)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    turned = Image.new("RGB", (8, 4))
    turned.paste("red", (0, 0, 4, 4))
    turned.getexif()[0x0112] = 3  # upside down
    pictures += [turned, Image.frombytes("RGB", turned.size, turned.tobytes())]
    documents = [chat.reader.document([question("What?", picture)]) for picture in pictures]
    prompts = [chat.reader.prompt(document, False) for document in documents]
    assert len({prompt.image_keys[0] for prompt in prompts}) == 4
    for prompt, picture in zip(prompts, pictures, strict=True):
        encoder = chat.model.encoder
        expected = encoder(encoder.preprocess([picture]))
        torch.testing.assert_close(prompt.features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "expected one that ends with the user's turn"),
        ([question("a"), Message(ASSISTANT, "b")], "ends with the user's turn"),
        ([question("a"), question("b")], "turn 1 is from user, expected assistant"),
        ([Message(ASSISTANT, "a"), question("b")], "turn 0 is from assistant, expected user"),
        ([question("a"), Message(SYSTEM, "b"), question("c")], "turn 1 is from system"),
        ([question("word " * 300)], "exceed the context of 256 tokens"),
    ],
)
def test_conversations_that_cannot_be_answered(parts, messages, problem):
    chat = speaking(parts, context=256)
    with pytest.raises(UserError, match=problem):
        chat.submit(messages)
    assert not chat.answers and chat.status().waiting == 0


def test_a_stop_string_ends_the_answer_before_it(parts):
    asked = [question("Tell me.")]
    chat = speaking(parts)
    [whole] = chat.generate([asked], AnswerSettings(40))
    assert len(whole.text) > 20
    stop = whole.parts[0][9:13]
    *pieces, last = chat.stream(asked, AnswerSettings(40, stop=("never", stop)))
    said = "".join(piece.text for piece in pieces)
    assert said == whole.parts[0][: whole.parts[0].index(stop)]
    assert last.reason == "stop" and last.usage.answer_tokens < 40
    assert chat.status().active == 0


def test_closing_the_stream_cancels(parts):
    chat = drawing(parts)
    stream = chat.stream([DRAW], ROOM)
    assert isinstance(next(stream), ImageStarted)
    stream.close()
    assert not chat.advance()
    status = chat.status()
    assert (status.waiting, status.active, status.drawing) == (0, 0, 0)
    [reply] = chat.generate([[DRAW]], ROOM)  # and leaves nothing behind
    [fresh] = drawing(parts).generate([[DRAW]], ROOM)
    torch.testing.assert_close(reply.features[0], fresh.features[0], atol=1e-4, rtol=1e-4)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.one_of(st.none(), st.integers(0, 8))),
                min_size=1, max_size=5))  # fmt: skip
def test_every_answer_ends_once(parts, requests):
    """Requests at any time, some of them cancelled: the last event of each is Finished, and the
    picture of each that was not cancelled is that of its own seed."""
    chat, answers, now = drawing(parts, slots=2), {}, 0
    while len(answers) < len(requests) or chat.answers:
        for number, (start, _) in enumerate(requests):
            if start == now:
                own = replace(ROOM, sampling=Sampling(seed=number))
                answers[number] = chat.submit([DRAW], own)
        for number, (start, lifetime) in enumerate(requests):
            if lifetime is not None and start + lifetime == now:
                chat.cancel(answers[number])
        chat.advance()
        now += 1
        assert now < 500
    for number, answer in answers.items():
        *before, last = answer.events
        assert isinstance(last, Finished) and answer.finished
        assert not any(isinstance(event, Finished) for event in before)
        if last.reason != "cancelled":
            [picture] = answer.reply.pictures
            [alone] = chat.draw(answer.reply.features, seed=number, num_inference_steps=2)
            assert np.abs(np.subtract(picture, alone, dtype=int)).max() <= 1


def test_many_conversations_answer_in_order(parts):
    chat = speaking(parts, slots=3)
    asked = [[question(f"Say {number}.")] for number in range(11)]
    own = [AnswerSettings(4 + number % 3) for number in range(11)]
    together = chat.generate(asked, own)
    for conversation, settings_, reply in zip(asked, own, together, strict=True):
        [alone] = chat.generate([conversation], settings_)
        assert reply.text == alone.text
    with pytest.raises(ValueError, match="settings: expected one for each of 11"):
        chat.generate(asked, own[:2])


def test_a_picture_that_cannot_be_drawn_fails_its_answer(parts):
    chat = drawing(parts)
    with torch.no_grad():
        for parameter in chat.decoder.unet.parameters():
            parameter.fill_(torch.nan)
    *_, last = chat.stream([DRAW], ROOM)
    assert last.reason == "error" and "picture 1 of the answer cannot be drawn" in last.error
    with pytest.raises(UserError, match="cannot be drawn"):
        chat.generate([[DRAW]], ROOM)


def test_without_a_decoder_or_a_wish_pictures_stay_features(parts):
    draws, _, tokenizer = parts
    for chat, own in (
        (Assistant(draws, tokenizer), replace(ROOM, drawing=DrawingSettings())),
        (drawing(parts), replace(ROOM, drawing=None)),
    ):
        [reply] = chat.generate([[DRAW]], own)
        assert reply.pictures == [] and len(reply.features) == 1
    [reply] = drawing(parts).generate([[DRAW]], replace(ROOM, max_images=0))
    assert reply.drawings == []
    with pytest.raises(UserError, match="the model has no decoder, so nothing can be set for"):
        Assistant(draws, tokenizer).generate([[DRAW]], ROOM)
