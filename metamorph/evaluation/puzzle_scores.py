"""Puzzles drawn: by way of asking, by kind of knowledge, and by what the model says in text.

Each puzzle is asked in every way, so that ways are compared on the same puzzles.
"""

import random
from typing import get_args

from metamorph.errors import UserError
from metamorph.evaluation.knowledge import Knowledge, first_tokens, knowledge_of
from metamorph.evaluation.options import Options
from metamorph.evaluation.puzzles import SUBJECTS, VALUES, Asked, Puzzle, puzzles
from metamorph.evaluation.scene_drawings import Drawing, draw_scenes, drawn_picture
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.task_source import SEED
from metamorph.generation.assistant import Assistant

PAIRED = "inferred - scrambled"
KINDS = [knowledge for _, knowledge in SUBJECTS]
# What guessing says of all puzzles.
_GUESSED = [1 / len(VALUES[puzzle.attribute]) for puzzle in puzzles()]
KNOWN_BY_CHANCE = dict.fromkeys(("known", "associated"), sum(_GUESSED) / len(_GUESSED))


def puzzle_scores(chat: Assistant, options: Options) -> list[Scored]:
    """A sample for each puzzle and way of asking: is all right that is asked for?

    And one that pairs two of these: `PAIRED` is 1 where only the inferred one is right, -1 where
    only the scrambled one is. It has as well whether the language model knows the answer in text,
    where that can be told (see `knowledge_note`). The ways and the pairs are also measured by kind
    of knowledge, and of what is known and is not.
    """
    everything = puzzles()
    chosen = random.Random(SEED).sample(everything, min(options.count, len(everything)))
    facts: dict[Puzzle, Knowledge] = {}
    if not knowledge_note(chat):  # what is usual is so over all of them
        known = knowledge_of(chat.model.language, chat.encoder.tokenizer, everything)
        facts = {fact.puzzle: fact for fact in known}
    ordered = sorted(chosen, key=lambda puzzle: KINDS.index(puzzle.knowledge))
    groups = {puzzle: _groups(puzzle, facts.get(puzzle)) for puzzle in ordered}
    found, right = [], {}
    for asked in get_args(Asked):
        drawn = _drawn(chat, chosen, asked, options)
        right[asked] = {puzzle: all(drawn[puzzle].right.values()) for puzzle in ordered}
        for puzzle in ordered:
            task, picture = drawn[puzzle].task, drawn[puzzle].picture
            sample, real = task.sample, drawn_picture(task)
            scores = _of_groups(asked, right[asked][puzzle], groups[puzzle])
            found.append(
                Scored(
                    sample.id, sample.turns[0].text, scores, cluster=task.combination,
                    real=real, drawn=picture,
                )
            )  # fmt: skip
    for puzzle in ordered:
        difference = right["inferred"][puzzle] - right["scrambled"][puzzle]
        found.append(_paired(puzzle, difference, groups[puzzle], facts.get(puzzle)))
    return found


def knowledge_note(chat: Assistant) -> str:
    """Why it cannot be told which answers the language model knows, if so."""
    try:
        for attribute in VALUES:
            first_tokens(chat.encoder.tokenizer, attribute)
    except UserError as error:
        return f"which answers the model knows in text was not measured: {error}"
    return ""


def _groups(puzzle: Puzzle, fact: Knowledge | None) -> list[str]:
    if fact is None:
        return [puzzle.knowledge]
    said = {"known": fact.known, "associated": fact.is_associated}
    return [puzzle.knowledge, *(name if holds else f"not {name}" for name, holds in said.items())]


def _of_groups(name: str, value: bool | float, groups: list[str]) -> dict[str, bool | float]:
    return {name: value} | {f"{name}, {group}": value for group in groups}


def _drawn(
    chat: Assistant, chosen: list[Puzzle], asked: Asked, options: Options
) -> dict[Puzzle, Drawing]:
    """What becomes of each puzzle; those that are judged alike are drawn together."""
    found = {}
    for judged in dict.fromkeys(puzzle.judged for puzzle in chosen):
        alike = [puzzle for puzzle in chosen if puzzle.judged == judged]
        tasks = [puzzle.task(asked) for puzzle in alike]
        found |= dict(zip(alike, draw_scenes(chat, tasks, judged, options), strict=True))
    return found


def _paired(puzzle: Puzzle, difference: int, groups: list[str], fact: Knowledge | None) -> Scored:
    name = f"puzzle-{PAIRED}-{puzzle.knowledge}-{puzzle.subject}".replace(" ", "-")
    request = f"{puzzle.request('inferred')} / {puzzle.request('scrambled')}"
    scores = _of_groups(PAIRED, difference, groups)
    said = ""
    if fact is not None:
        scores |= {"known": fact.known, "associated": fact.is_associated}
        said = fact.said
    return Scored(name, request, scores, puzzle.right, said, cluster=puzzle.scene.combination)
