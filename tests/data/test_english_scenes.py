"""The toy world in English: every caption means one scene, and what is held out is never said."""

import random
import re
from itertools import product
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.config import DataConfig
from metamorph.data.opening import open_source
from metamorph.data.toy.english import requests, words
from metamorph.data.toy.english.captions import ONE, SEVERAL, options
from metamorph.data.toy.english.questions import QUESTIONS
from metamorph.data.toy.english.wording import PHRASINGS, English, spoken
from metamorph.data.toy.scenes import (
    COLOURS,
    COUNT_WORDS,
    MOVES,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    is_held_out,
)
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.errors import UserError

FAMILIES = {
    "question": QUESTIONS,
    "describe": {name: {"": said} for name, said in requests.DESCRIBE.items()},
    "draw": {name: {"": said} for name, said in requests.DRAW.items()},
    "edit": {name: {"": said} for name, said in requests.EDIT.items()},
    "motion": {
        name: {"way": requests.DIRECTION[name], "frame": requests.NEXT_FRAME[name]}
        for name in ("train", "held_out")
    },
    "zoom": {name: {"": said} for name, said in requests.ZOOM.items()},
}
MOST_WORDS = 27  # of a request about one picture: about 35 tokens of SmolLM2
# What a reader takes each word for, written down apart from the tables that captions are made of.
MEANING = {
    "colour": {
        "red": "red|crimson|scarlet|ruby", "green": "green|emerald|jade",
        "blue": "blue|sapphire|azure", "yellow": "yellow|golden",
        "purple": "purple|violet|plum", "black": "black|ebony",
    },
    "shape": {
        "circle": "circles?|discs?|round shapes?", "square": "squares?|box(?:es)?",
        "triangle": "triangles?|three-cornered shapes?",
        "cross": "cross(?:es)?|plus signs?|plus symbols?",
    },
    "size": {
        "small": "small|little|tiny|miniature|petite", "large": "large|big|huge|giant|enormous",
    },
    "count": {2: "two|2", 3: "three(?!-)|3", 4: "four|4", 5: "five|5"},
    "vertical": {"top": "top|upper|north(?:west|east)",
                 "bottom": "bottom|lower|south(?:west|east)"},
    "side": {"left": "left|(?:north|south)west", "right": "right|(?:north|south)east"},
    "centre": {"center": "centre|center|middle|midpoint|halfway"},
}  # fmt: skip


def meant(text: str) -> tuple:
    """Shape, colour, size, place and count of the one scene that a caption can mean."""
    found = {}
    for attribute, values in MEANING.items():
        said = [value for value, how in values.items() if re.search(rf"\b(?:{how})\b", text, re.I)]
        assert len(said) <= 1, f"{text}: {attribute} may be {said}"
        found[attribute] = said[0] if said else None
    place = found["centre"] or f"{found['vertical']} {found['side']}"
    if found["count"]:
        assert place == "None None"
        place = "center"
    return found["shape"], found["colour"], found["size"], place, found["count"] or 1


def key(scene: Scene) -> tuple:
    return scene.shape, scene.colour, scene.size, scene.place, scene.count


def normalised(sentence: str) -> str:
    """Without what typists differ in: case, punctuation, politeness and spelling."""
    bare = re.sub(r"[^a-z{} ]", "", sentence.lower().replace("colour", "color"))
    return " ".join(word for word in bare.split() if word not in ("please", "now"))


SINGLE = [Scene(*values) for values in product(SHAPES, COLOURS, SIZES, PLACES)]
GROUPS = [Scene(s, c, "small", "center", n) for s, c, n in product(SHAPES, COLOURS, (2, 3, 4, 5))]
ALL = {"train": [s for f in FAMILIES.values() for g in f["train"].values() for s in g]}
ALL["held_out"] = [s for f in FAMILIES.values() for g in f["held_out"].values() for s in g]


def task(phrasing: str, kind: str, index: int, split: str = "train"):
    return make_task(11, index, split, {kind: 1.0}, English(phrasing))


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_has_many_sentences_and_others_that_training_never_says(kind):
    train, held_out = (
        [sentence for group in FAMILIES[kind][name].values() for sentence in group]
        for name in ("train", "held_out")
    )
    assert len({*map(normalised, train)}) >= 25 and len(train) >= 30
    assert len({*map(normalised, held_out)}) == len(held_out) >= 10
    assert not {*map(normalised, train)} & {*map(normalised, held_out)}


@pytest.mark.parametrize("attribute", QUESTIONS["train"])
def test_no_question_of_training_has_most_words_of_a_held_out_one(attribute):
    for asked, held_out in product(*(QUESTIONS[name][attribute] for name in ("train", "held_out"))):
        words_asked, words_held_out = ({*normalised(text).split()} for text in (asked, held_out))
        assert len(words_asked & words_held_out) <= 0.6 * len(words_asked | words_held_out), asked


def test_sentences_and_words_of_captions_are_apart_too():
    for templates in (ONE, SEVERAL):
        assert not {*templates["train"]} & {*templates["held_out"]}
    for table in (words.COLOUR_WORDS, words.SHAPE_WORDS, words.SIZE_WORDS, words.DIRECTION_WORDS):
        for value, said in table["train"].items():
            assert not {*said} & {*table["new"][value]}
    for table in (words.CORNER_PHRASES, words.CENTRE_PHRASES, words.CORNER_LABELS):
        assert not {*table["train"]} & {*table["new"]}


@pytest.mark.parametrize("said", words.COLOUR_WORDS)
@pytest.mark.parametrize("templates", ONE)
def test_every_caption_means_one_scene(said, templates):
    means = {}
    for scene in (*SINGLE, *GROUPS):
        slots = options(scene, said)
        for template in (ONE if scene.count == 1 else SEVERAL)[templates]:
            named = sorted({name for _, name, _, _ in Formatter().parse(template) if name})
            for choice in product(*(slots[name] for name in named)):
                text = template.format(**dict(zip(named, choice, strict=True)))
                assert means.setdefault(text, key(scene)) == key(scene), text
    for text in random.Random(0).sample(sorted(means), 1500):
        assert meant(spoken(random.Random(text), text)) == means[text]


@given(st.sampled_from(PHRASINGS), st.sampled_from(["train", "held_out"]), st.integers(0, 10**9))
def test_a_request_to_draw_says_the_scene_that_is_shown(phrasing, split, index):
    asked = task(phrasing, "draw", index, split)
    assert meant(asked.sample.turns[0].text) == key(asked.scene)
    assert is_held_out(asked.scene) == (split == "held_out")


@given(st.sampled_from(list(KINDS)), st.integers(0, 10**9))
def test_training_never_says_what_is_held_out(kind, index):
    asked = task("train", kind, index)
    said = asked.sample.turns[0].text.replace("<image>", "")
    for sentence in ALL["held_out"]:
        pattern = re.escape(normalised(sentence)).replace(r"\{", "{").replace(r"\}", "}")
        assert not re.fullmatch(re.sub(r"\{\w+\}", ".+", pattern), normalised(said)), sentence
    for table in (words.COLOUR_WORDS, words.SHAPE_WORDS, words.SIZE_WORDS):
        for new in (word for synonyms in table["new"].values() for word in synonyms):
            assert not re.search(rf"\b{new}(es|s)?\b", said, re.I)
    assert not re.search("northwest|northeast|southwest|southeast|midpoint|halfway", said, re.I)
    assert not is_held_out(asked.scene)
    if kind == "text" and asked.attribute == "repeat":
        assert meant(said) == meant(asked.sample.turns[1].text) == key(asked.scene)


@given(st.sampled_from(PHRASINGS), st.sampled_from(list(KINDS)), st.integers(0, 10**9))
def test_requests_are_whole_short_sentences(phrasing, kind, index):
    sample = task(phrasing, kind, index).sample
    asked = sample.turns[0].text
    assert "{" not in asked and "  " not in asked
    assert not re.search(r"\ba [aeiou]", asked, re.I)
    assert not ("olour" in asked and "olor" in asked)
    assert len(asked.split()) <= MOST_WORDS + 14 * (kind in ("zoom", "text", "motion"))
    assert asked.count("<image>") + sample.turns[1].text.count("<image>") == len(sample.images)


def test_answers_are_one_short_word_each():
    spoken_of = {"size": {*SIZES}, "shape": {*SHAPES}, "colour": {*COLOURS}, "place": {*PLACES}}
    spoken_of["count"] = {*COUNT_WORDS.values()}
    answers, ways = {}, set()
    for index in range(400):
        asked = task(PHRASINGS[index % 3], "question", index)
        answers.setdefault(asked.attribute, set()).add(asked.sample.turns[1].text)
        ways.add(task("train", "motion", index).sample.turns[1].text)
    assert answers == spoken_of
    assert ways == {"<image>", *(direction for _, direction in MOVES)}


def test_every_wording_is_about_the_same_scenes():
    for kind in KINDS:
        for index in range(5):
            plain = make_task(11, index, "held_out", {kind: 1.0})
            texts = set()
            for phrasing in PHRASINGS:
                other = task(phrasing, kind, index, "held_out")
                assert (other.scene, other.attribute) == (plain.scene, plain.attribute)
                assert other.sample.id == plain.sample.id.replace("toy", f"english-{phrasing}")
                for one, same in zip(other.sample.images, plain.sample.images, strict=True):
                    assert one.tobytes() == same.tobytes()
                texts.add(other.sample.turns[0].text)
            assert len(texts) >= 2 and plain.sample.turns[0].text not in texts


def test_people_type_in_many_ways():
    said = [task("train", "question", index).sample.turns[0].text for index in range(300)]
    typed = [text.removeprefix("<image>") for text in said]
    assert any("color" in text for text in typed) and any("colour" in text for text in typed)
    assert 0.15 < sum(text == text.lower() for text in typed) / 300 < 0.35
    assert 0.2 < sum(text[-1].isalpha() for text in typed) / 300 < 0.4
    with pytest.raises(ValueError, match="phrasing"):
        English("rude")


def test_a_run_names_them_as_its_source():
    source = open_source(DataConfig(source="english_scenes", kinds={"draw": 1.0}, samples=5), 3)
    assert source.sample(1).id == source.sample(6).id == "english-train-train-3-1-draw"
    with pytest.raises(UserError, match="unknown.*paint"):
        open_source(DataConfig(source="english_scenes", kinds={"paint": 1.0}), seed=0)
    whole, rest = DataConfig(source="english_scenes", samples=50, validation=0.1), "training"
    assert len(open_source(whole, 0, portion=rest)) == 45
