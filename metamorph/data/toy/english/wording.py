"""The toy world in ordinary English: sentences, spelling, politeness and synonyms vary."""

import random
import re

from metamorph.data.toy.english import pairs, requests
from metamorph.data.toy.english.captions import english_caption, say
from metamorph.data.toy.english.questions import QUESTIONS
from metamorph.data.toy.english.words import COLOUR_WORDS, DIRECTION_WORDS, SHAPE_WORDS
from metamorph.data.toy.pairs import Item, Pair, PairQuestion
from metamorph.data.toy.scenes import COUNT_WORDS, Scene
from metamorph.data.toy.wording import REPEAT

PHRASINGS = ("train", "held_out", "new_words")
AMERICAN_SHARE = 0.5  # of requests; the others are in British spelling
UNPUNCTUATED_SHARE = 0.3  # without their last sign
LOWER_CASE_SHARE = 0.25
AMERICAN = {"olour": "olor", "entre": "enter", "isualise": "isualize", "ummarise": "ummarize"}


class English:
    """Requests of one of three `phrasing`s:

    - `train`: the sentences and words of training;
    - `held_out`: sentences that training never says, for captions and requests alike, in words that
      it does say;
    - `new_words`: such sentences, in synonyms that training never says.

    Answers are the same short words for all of them.
    """

    def __init__(self, phrasing: str = "train"):
        if phrasing not in PHRASINGS:
            raise ValueError(f"phrasing must be one of {PHRASINGS}, got {phrasing!r}")
        self.name = f"english-{phrasing}"
        self.sentences = "train" if phrasing == "train" else "held_out"
        self.words = "new" if phrasing == "new_words" else "train"

    def question(self, rng: random.Random, attribute: str) -> str:
        return spoken(rng, rng.choice(QUESTIONS[self.sentences][attribute]))

    def answer(self, attribute: str, scene: Scene) -> str:
        return COUNT_WORDS[scene.count] if attribute == "count" else getattr(scene, attribute)

    def description_request(self, rng: random.Random) -> str:
        return spoken(rng, rng.choice(requests.DESCRIBE[self.sentences]))

    def drawing_request(self, rng: random.Random, scene: Scene) -> str:
        template = rng.choice(requests.DRAW[self.sentences])
        return spoken(rng, template.format(caption=self._caption(rng, scene)))

    def edit_request(self, rng: random.Random, before: Scene, after: Scene) -> str:
        template = rng.choice(requests.EDIT[self.sentences])
        colour = say(rng, COLOUR_WORDS[self.words][after.colour])
        return spoken(rng, template.format(shape=self._shape(rng, before), colour=colour))

    def direction_question(self, rng: random.Random, scene: Scene) -> str:
        template = rng.choice(requests.DIRECTION[self.sentences])
        return spoken(rng, template.format(shape=self._shape(rng, scene)))

    def next_frame_request(self, rng: random.Random, scene: Scene, direction: str) -> str:
        template = rng.choice(requests.NEXT_FRAME[self.sentences])
        way = say(rng, DIRECTION_WORDS[self.words][direction])
        return spoken(rng, template.format(shape=self._shape(rng, scene), direction=way))

    def zoom_request(self, rng: random.Random, attribute: str) -> str:
        template = rng.choice(requests.ZOOM[self.sentences])
        asked = rng.choice(QUESTIONS[self.sentences][attribute])
        return spoken(rng, template.format(question=asked))

    def text_request(self, rng: random.Random, scene: Scene, attribute: str) -> str:
        words = self._caption(rng, scene)
        if attribute == REPEAT:
            template = rng.choice(requests.REPEAT[self.sentences])
            return spoken(rng, template.format(caption=words))
        template = rng.choice(requests.TEXT[self.sentences])
        asked = rng.choice(QUESTIONS[self.sentences][attribute])
        return spoken(rng, template.format(caption=words, question=asked))

    def pair_request(self, rng: random.Random, pair: Pair) -> str:
        template = rng.choice(requests.DRAW[self.sentences])
        one, other = (
            f"a {say(rng, COLOUR_WORDS[self.words][item.colour])} {self._shape(rng, item)}"
            for item in (pair.left, pair.right)
        )
        words = rng.choice(pairs.CAPTIONS[self.sentences]).format(one=one, other=other)
        return spoken(rng, template.format(caption=words))

    def pair_question(self, rng: random.Random, pair: Pair, about: PairQuestion) -> str:
        template = rng.choice(pairs.QUESTIONS[about.attribute][self.sentences])
        shape = self._shape(rng, about.item(pair))
        return spoken(rng, template.format(side=about.side, shape=shape))

    def _caption(self, rng: random.Random, scene: Scene) -> str:
        return english_caption(rng, scene, self.sentences, self.words)

    def _shape(self, rng: random.Random, shown: Scene | Item) -> str:
        return say(rng, SHAPE_WORDS[self.words][shown.shape])


def spoken(rng: random.Random, text: str) -> str:
    """A sentence as one of many people would type it, with its articles put right."""
    text = re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", text)
    text = text[0].upper() + text[1:]
    if rng.random() < AMERICAN_SHARE:
        for british, american in AMERICAN.items():
            text = text.replace(british, american)
    if rng.random() < UNPUNCTUATED_SHARE:
        text = text.rstrip(".?")
    if rng.random() < LOWER_CASE_SHARE:
        text = text.lower()
    return text
