"""Images in prompts that see themselves whole, the same in training and in generation; those that
are predicted stay causal."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.config import ModelConfig
from metamorph.costs.flops import Workload
from metamorph.data.conversation import ASSISTANT, USER, ChatEncoder, Sample, Turn
from metamorph.data.describe import describe_row
from metamorph.data.packing import pack_row
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.cache import KeyValueCache
from metamorph.generation.messages import Drawing, Message, question
from metamorph.generation.prefill import Piece, cut, prefill
from metamorph.model.adapter_files import open_adapted
from metamorph.model.inference import RotaryTable
from metamorph.model.official_names import export_model, import_model
from metamorph.model.opening import open_model
from metamorph.model.outline import outline
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.planning.assumed_samples import assumed_row
from metamorph.training.batch import Batch
from metamorph.training.loop import train
from metamorph.training.rules import check_rules
from tests.tiny_run import GRID, let_speak, tiny_config

CPU = torch.device("cpu")
CHOICES = ("causal", "bidirectional")
ALL_KINDS = dict.fromkeys(KINDS, 1.0)


@pytest.fixture(scope="module")
def opened(parts):
    """Of each choice: a model whose states depend on all that they see, and its tokenizer."""
    found = {}
    for choice in CHOICES:
        config = tiny_config(parts, "instruct")
        config.model.prompt_images = choice
        found[choice] = open_model(config)
        let_speak(found[choice][0])
    return found


def encoder_of(opened, choice) -> ChatEncoder:
    model, tokenizer = opened[choice]
    return ChatEncoder(tokenizer, GRID**2, model.config.prompt_images)


def states_of(model, row, features=None):
    batch = Batch.of(row, model.vision, CPU)
    if features is None:
        features = batch.visual_features(model.vision)
    with torch.no_grad():
        return model(
            batch.token_ids, batch.positions, batch.intervals, features, batch.visual_positions
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6), st.integers(0, 40))
def test_what_is_predicted_is_never_seen(opened, indices, padding):
    """A state that predicts sees nothing behind it, nor does one that such a state could see: all
    is causal but the images of prompts, which end at their own last token."""
    encoder = encoder_of(opened, "bidirectional")
    documents = [encoder.encode(make_task(0, i, "train", ALL_KINDS).sample) for i in indices]
    row = pack_row(documents, sum(map(len, documents)) + padding, 0)
    model, _ = opened["bidirectional"]
    intervals = Batch.of(row, model.vision, CPU).intervals
    seen_until = torch.arange(len(row.token_ids)) + 1
    places = row.visual_positions.unflatten(0, (-1, GRID**2))  # of each image
    targets = set(row.visual_targets.tolist())
    read = [places[i] for i in range(len(places)) if i * GRID**2 not in targets]
    for image in read:
        seen_until[image] = image[-1] + 1
    assert intervals.row_end.tolist() == seen_until.tolist()
    for predicting in (row.text_rows, row.visual_rows):
        assert torch.equal(seen_until[predicting], predicting + 1)
    pairs = (intervals.row_end - intervals.row_start).sum().item()
    assert Workload.of(row, GRID**2).visible_pairs == pairs
    causal = encoder_of(opened, "causal")
    plain = [causal.encode(make_task(0, i, "train", ALL_KINDS).sample) for i in indices]
    assert pack_row(plain, len(row.token_ids), 0).bidirectional_spans == ()


@pytest.mark.parametrize("choice", CHOICES)
def test_an_earlier_patch_knows_a_later_one_in_a_bidirectional_prompt_alone(opened, choice):
    model, _ = opened[choice]
    document = encoder_of(opened, choice).encode(make_task(0, 0, "train", {"edit": 1.0}).sample)
    row = pack_row([document], len(document) + 3, 0)
    features = Batch.of(row, model.vision, CPU).visual_features(model.vision)  # [2, tokens, C]
    before = states_of(model, row, features)
    (read, _), (drawn, end) = document.spans
    for image, first in ((0, read), (1, drawn)):
        changed = features.clone()
        changed[image, -1] = -changed[image, -1]
        moved = (states_of(model, row, changed) - before).abs().amax(1) > 1e-3
        last = first + GRID**2 - 1
        assert moved[last]
        is_whole = choice == "bidirectional" and image == 0
        assert moved[first:last].all() == is_whole == moved[first:last].any()
        assert not moved[:first].any()
        assert moved[row.visual_rows].any() == (image == 0)  # the answer depends on what is read
    assert moved[end - 1] and not moved[row.visual_rows].any()


def conversation():
    """A turn with two pictures, a drawing in the answer, and a turn with a third picture."""
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    features = torch.nn.functional.normalize(torch.randn(GRID**2, 24), dim=-1)
    drawing = Drawing(features, pictures[0])
    answer = Message(ASSISTANT, ("this one", drawing))
    return [
        question("<image> the circle <image> .", *pictures[:2]),
        answer,
        question("<image> what is this ?", pictures[2]),
    ]


@pytest.mark.parametrize("chunk", [100, 3])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_prompt_is_read_as_it_was_trained(opened, choice, chunk):
    """Training's pass over a packed row of the whole conversation, its answer included, and
    generation's over the prompt, in one piece or in pieces shorter than an image."""
    torch.manual_seed(0)
    model, tokenizer = opened[choice]
    chat = Assistant(model, tokenizer)
    document = chat.reader.document(conversation())
    prompt = chat.reader.prompt(document, reencode=False)
    expected = [span for span, own in zip(document.spans, document.is_target, strict=True)
                if not own]  # fmt: skip
    assert list(prompt.bidirectional_spans) == (expected if choice == "bidirectional" else [])
    assert document.is_target == [False, False, True, False]

    turns = [message.turn for message in conversation()] + [Turn(ASSISTANT, "a circle")]
    trained = chat.encoder.encode(Sample("s", tuple(turns), document.images))
    assert trained.token_ids[: len(prompt)] == list(prompt.token_ids)
    other = chat.encoder.encode(make_task(0, 0, "train", {"edit": 1.0}).sample)
    cached = [
        replace(other, features=torch.rand(2, GRID**2, 24), images=()),
        replace(trained, features=prompt.features, images=()),
    ]
    row = pack_row(cached, len(other) + len(trained) + 5, 0)
    states = states_of(model, row)[len(other) :]

    language = model.config.language
    cache = KeyValueCache.empty(language, 1, 200, device=CPU, dtype=torch.float32)
    rotary = RotaryTable(model.language, 200, device=CPU, dtype=torch.float32)
    read = 0
    with torch.no_grad():
        while read < len(prompt):
            end = cut(prompt, read, chunk)
            [state] = prefill(model, cache, rotary, [Piece(0, prompt, read, end)])
            torch.testing.assert_close(state, states[end - 1], rtol=1e-3, atol=1e-3)
            read = end


def test_the_folder_says_how_its_prompts_are_read(folder):
    """From the run that began it to the next, and to whoever asks it."""
    config = tiny_config(folder, "align", steps=1)
    config.model.prompt_images = "bidirectional"
    aligned = train(config)
    following = tiny_config(folder, "instruct", steps=1, lora_rank=2)
    following.model = ModelConfig(folder=str(aligned))
    instructed = train(following)
    for place in (aligned, instructed):
        assert MetaMorphConfig.read(place).prompt_images == "bidirectional"
    picture = Image.new("RGB", (64, 64), "red")
    chat = Assistant.from_pretrained(instructed)
    [span] = chat.reader.document([question("<image> what is this ?", picture)]).bidirectional_spans
    assert span[1] - span[0] == GRID**2

    model, tokenizer = open_model(following)
    export_model(model, folder / "exported", tokenizer, "official")
    again, _ = import_model(folder / "exported", folder / "siglip", grid=GRID)
    assert again.config.prompt_images == "bidirectional"
    adapted, _ = open_adapted(folder / "instruct/adapter", folder / "llama", folder / "siglip")
    assert adapted.config.prompt_images == "bidirectional"

    following.model.prompt_images = "causal"  # said is said
    assert open_model(following)[0].config.prompt_images == "causal"
    assert outline(following.model)[0].config.prompt_images == "causal"
    data = json.loads((aligned / "config.json").read_text())
    (aligned / "config.json").write_text(json.dumps(data | {"prompt_images": "both"}))
    with pytest.raises(UserError, match="config.json: prompt_images: expected causal or bidirec"):
        MetaMorph.from_pretrained(aligned)
    del data["prompt_images"]  # a folder from before there was a choice
    assert MetaMorphConfig.from_dict(data).prompt_images == "causal"


def test_what_computes_causal_rows_alone_is_refused(tmp_path, folder):
    config = tiny_config(folder, "instruct")
    config.model = replace(config.model, attention="xformers", prompt_images="bidirectional")
    for refused in (partial(open_model, config), partial(outline, config.model)):
        with pytest.raises(UserError, match="model.attention: xformers computes causal rows alone"):
            refused()
    config = tiny_config(tmp_path, "language")
    config.model.prompt_images = "causal"
    with pytest.raises(UserError, match="model.prompt_images: stage language does not use it"):
        check_rules(config, CPU)


def test_a_plan_counts_and_shows_what_sees_itself_whole(opened):
    works = [assumed_row("align", 4096, 64, choice) for choice in CHOICES]
    (causal, samples), (whole, _) = works
    added = whole.visible_pairs - causal.visible_pairs
    assert added == pytest.approx(samples * 64 * 63 / 2)  # an image a sample
    assert replace(whole, visible_pairs=causal.visible_pairs) == causal
    for choice in CHOICES:
        encoder = encoder_of(opened, choice)
        turns = (Turn(USER, "<image>"), Turn(ASSISTANT, "<image>"))
        sample = Sample("s", turns, (Image.new("RGB", (8, 8)),) * 2)
        row = pack_row([encoder.encode(sample)], 40, 0)
        text = describe_row("row", row, encoder.tokenizer)
        assert text.count("4 tokens, sees itself whole]") == (choice == "bidirectional")
        assert "[picture 2: 8 x 8, 4 tokens]" in text
