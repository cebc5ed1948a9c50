"""Puzzles are told apart by how they are asked, and by what the language model knows of them."""

from types import SimpleNamespace

import pytest

from metamorph.data.toy.scenes import render
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.evaluation.model_report import suite_report
from metamorph.evaluation.options import Options
from metamorph.evaluation.puzzle_scores import PAIRED, knowledge_note, puzzle_scores
from metamorph.evaluation.puzzles import puzzles
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.suites import SUITES
from metamorph.model.siglip import SiglipEncoder
from metamorph.quickstart.run import ASSETS
from tests.evaluation.stand_in import StandIn
from tests.evaluation.test_puzzles import expecting

PUZZLES = {puzzle.request(): puzzle for puzzle in puzzles()}
RED = {request for request, puzzle in PUZZLES.items() if puzzle.right == "red"}
DRAWS = {request: render(puzzle.scene) for request, puzzle in PUZZLES.items()}
STATED = {puzzle.request("stated"): render(puzzle.scene) for puzzle in PUZZLES.values()}
SCRAMBLED = {puzzle.request("scrambled"): render(puzzle.scene) for puzzle in PUZZLES.values()}


@pytest.fixture(scope="module")
def encoder():
    return SiglipEncoder.from_pretrained(ASSETS / "encoder", grid=4)


@pytest.fixture(scope="module")
def tokenizer():
    """One that has a token for each value, which the toy's own has not."""
    tokenizer = build_toy_tokenizer()
    tokenizer.add_tokens([" two", " three", " four", " five"])
    return tokenizer


class Literal(StandIn):
    """It draws what it was given a picture of, and in text it expects red after anything."""

    def __init__(self, encoder, tokenizer, pictures: dict):
        super().__init__(encoder, ())
        self.pictures = pictures
        self.model.language = expecting(tokenizer, " red")
        self.encoder = SimpleNamespace(tokenizer=tokenizer)

    def generate(self, conversations, settings):
        requests = [turns[-1].text for turns in conversations]
        self.answers = iter([("", self.pictures.get(request)) for request in requests])
        return super().generate(conversations, settings)


def measures(chat, count: int) -> dict[str, dict]:
    return suite_report("puzzles", puzzle_scores(chat, Options(count)), seed=0)["measures"]


def test_ways_of_asking_are_compared_on_the_same_puzzles(encoder, tokenizer):
    found = measures(Literal(encoder, tokenizer, DRAWS | STATED), 12)
    assert found["inferred"]["mean"] == found["stated"]["mean"] == 1
    assert found["scrambled"]["mean"] == 0
    assert found[PAIRED]["mean"] == 1 and found[PAIRED]["count"] == 12
    assert found[PAIRED]["p"] == pytest.approx(2 / 2 ** found[PAIRED]["clusters"])
    assert 6 < found[PAIRED]["clusters"] <= 12  # some ask for the same scene
    # A model that takes words for a bag draws both, and has understood neither.
    bag = measures(Literal(encoder, tokenizer, DRAWS | SCRAMBLED), 12)[PAIRED]
    assert [bag[key] for key in ("mean", "low", "high", "p")] == [0, 0, 0, 1]


def test_pairs_without_a_cluster_are_independent():
    pairs = [Scored(str(number), "", {PAIRED: 1}) for number in range(5)]
    found = suite_report("puzzles", pairs, seed=0)["measures"][PAIRED]
    assert (found["clusters"], found["p"]) == (5, 2 / 2**5)


def test_each_kind_of_knowledge_and_what_is_known_have_their_own_shares(encoder, tokenizer):
    found = measures(Literal(encoder, tokenizer, {name: DRAWS[name] for name in RED}), 100)
    kinds = {"colour": 27, "outline": 12, "geometry": 8, "number": 14, "arithmetic": 12}
    for kind, count in kinds.items():
        right = sum(PUZZLES[name].knowledge == kind for name in RED)
        for way in ("inferred", PAIRED):
            assert found[f"{way}, {kind}"]["count"] == count
            assert found[f"{way}, {kind}"]["mean"] == pytest.approx(right / count)
        assert found[f"stated, {kind}"]["mean"] == 0
    # To every question it says red, or of shapes and numbers what stands first.
    firsts = [puzzle.right in ("red", "circle", "two") for puzzle in PUZZLES.values()]
    assert found["known"]["mean"] == pytest.approx(sum(firsts) / 73)
    assert found["known"]["chance"] == pytest.approx((27 / 6 + 46 / 4) / 73)
    assert found["inferred, known"]["count"] == sum(firsts)
    assert found["inferred, known"]["mean"] == pytest.approx(len(RED) / sum(firsts))
    assert found["inferred, not known"]["mean"] == 0
    assert found["inferred, not known"]["count"] == 73 - sum(firsts)


def test_where_answers_begin_alike_knowledge_is_left_out_and_the_report_says_so(encoder):
    chat = Literal(encoder, build_toy_tokenizer(), DRAWS)
    found = measures(chat, 8)
    assert found["inferred"]["mean"] == 1 and f"{PAIRED}, colour" in found
    assert not any("known" in name or "associated" in name for name in found)
    assert SUITES["puzzles"].note is knowledge_note
    assert knowledge_note(chat) == (
        "which answers the model knows in text was not measured: tokenizer: some of two, three, "
        "four, five begin with the same token"
    )
