"""What a model is asked: suites of tasks, each scored sample by sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from metamorph.data.toy.tasks import Task
from metamorph.errors import UserError
from metamorph.evaluation import geneval
from metamorph.evaluation.checker import ALL_RIGHT, CHANCE
from metamorph.evaluation.diversity import DRAWS, noise_diversity
from metamorph.evaluation.options import Options
from metamorph.evaluation.own_drawings import own_edits, own_questions
from metamorph.evaluation.puzzle_scores import (
    KNOWN_BY_CHANCE,
    PAIRED,
    knowledge_note,
    puzzle_scores,
)
from metamorph.evaluation.retrieval import CANDIDATES, chance, retrieve
from metamorph.evaluation.scene_answers import answer_questions
from metamorph.evaluation.scene_drawings import Drawing, draw_scenes, drawn_picture
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.teacher_forcing import visual_cosines
from metamorph.evaluation.text_ability import text_ability
from metamorph.evaluation.toy_tasks import (
    JUDGED,
    caption_tasks,
    drawing_tasks,
    other_questions,
    tasks_of,
)
from metamorph.evaluation.two_objects import two_objects
from metamorph.evaluation.zooming import zoom_answers
from metamorph.generation.assistant import Assistant

KNOWN = 500  # pictures of training whose mean token is the baseline of visual cosines


@dataclass(frozen=True)
class Suite:
    """`asks` for what, in words. `draws`: it takes a decoder; `noise`: one that draws from noise.
    `chance` is what guessing scores, by measure, where that is known; `paired` a measure that is 1
    or -1 where one of two is right alone, and 0 elsewhere; `note` says what is missing for a model,
    if something is."""

    asks: str
    run: Callable[[Assistant, Options], list[Scored]]
    draws: bool = False
    noise: bool = False
    chance: dict[str, float] | None = None
    paired: str = ""
    note: Callable[[Assistant], str] | None = None


def _answered(
    tasks: Callable[[Options], list[Task]], chat: Assistant, options: Options
) -> list[Scored]:
    """`right`, and the same by the attribute that is asked for."""
    found = []
    for answer in answer_questions(chat, tasks(options)):
        request, expected = (turn.text for turn in answer.task.sample.turns)
        names = filter(None, ("right", answer.task.attribute))
        scores: dict[str, bool | float] = dict.fromkeys(names, answer.right)
        name, cluster = answer.task.sample.id, answer.task.combination
        found.append(Scored(name, request, scores, expected, answer.text, cluster=cluster))
    return found


def _questions(options: Options) -> list[Task]:
    return tasks_of("question", options.count, source=options.source)


def _others(asked: str, options: Options) -> list[Task]:
    return other_questions(asked, options.count, options.source)


def _drawings(asked: str, chat: Assistant, options: Options) -> list[Scored]:
    """Each attribute, and `ALL_RIGHT`."""
    tasks = drawing_tasks(asked, options.count, source=options.source)
    return [
        _drawn(drawing, drawing.right | {ALL_RIGHT: all(drawing.right.values())})
        for drawing in draw_scenes(chat, tasks, JUDGED[asked], options)
    ]


def _geneval(chat: Assistant, options: Options) -> list[Scored]:
    """`ALL_RIGHT`, and the same by kind of prompt."""
    found = []
    for kind, judged in geneval.JUDGED.items():
        tasks = geneval.geneval_tasks(kind, options.count)
        for drawing in draw_scenes(chat, tasks, judged, options):
            right = all(drawing.right.values())
            one = _drawn(drawing, {ALL_RIGHT: right, kind: right})
            found.append(replace(one, cluster=""))  # each prompt is another
    return found


def _drawn(drawing: Drawing, scores: Mapping[str, bool | float]) -> Scored:
    task, real = drawing.task, drawn_picture(drawing.task)
    name, request = task.sample.id, task.sample.turns[0].text
    return Scored(name, request, scores, cluster=task.combination, real=real, drawn=drawing.picture)


def _cosines(chat: Assistant, options: Options) -> list[Scored]:
    source = options.source
    tasks = caption_tasks(options.count, source=source)
    known = [drawn_picture(task) for task in caption_tasks(KNOWN, "train", source)]
    cosines = visual_cosines(chat, [task.sample for task in tasks], known)
    return [
        Scored(
            task.sample.id,
            task.sample.turns[0].text,
            {"cosine": own, "mean baseline": mean},
            cluster=task.combination,
        )  # fmt: skip
        for task, own, mean in zip(tasks, cosines.model, cosines.mean_baseline, strict=True)
    ]


SUITES = {
    "questions": Suite("questions about a picture", partial(_answered, _questions)),
    "motion": Suite(
        "which way a shape moved between two pictures",
        partial(_answered, partial(_others, "motion")),
    ),
    "other-questions": Suite(
        "the same questions in words that training never has",
        partial(_answered, partial(_others, "other wordings")),
    ),
    "captions": Suite(
        "pictures of one shape", partial(_drawings, "captions"), draws=True, chance=CHANCE
    ),
    "counts": Suite("pictures of two to five shapes", partial(_drawings, "counts"), draws=True),
    "edits": Suite("a picture in another colour", partial(_drawings, "edits"), draws=True),
    "next-frames": Suite(
        "what a picture looks like after a move", partial(_drawings, "next frames"), draws=True
    ),
    "other-wordings": Suite(
        "the pictures of captions in words that training never has",
        partial(_drawings, "other wordings"),
        draws=True,
    ),
    "zoom": Suite("the shape enlarged, then its name or colour", zoom_answers, draws=True),
    "own-questions": Suite("a picture, then about that drawing", own_questions, draws=True),
    "own-edits": Suite("a picture, then that drawing in another colour", own_edits, draws=True),
    "geneval": Suite("pictures of which little is said, as GenEval does", _geneval, draws=True),
    "two-objects": Suite(
        "two different shapes side by side, drawn and asked about", two_objects, draws=True
    ),
    "puzzles": Suite(
        "pictures of which something has to be inferred, and the same stated or scrambled",
        puzzle_scores,
        draws=True,
        chance=KNOWN_BY_CHANCE,
        paired=PAIRED,
        note=knowledge_note,
    ),
    "retrieval": Suite(
        f"which of {CANDIDATES} pictures the features of a caption are nearest to",
        retrieve,
        chance=chance(CANDIDATES),
    ),
    "cosine": Suite("the features of pictures, each after the true ones before it", _cosines),
    "diversity": Suite(
        f"{DRAWS} drawings of each caption, which differ by the decoder's noise alone",
        noise_diversity,
        draws=True,
        noise=True,
    ),
    "text": Suite("text without pictures", text_ability),
}


def check_names(names: Sequence[str]) -> None:
    """Raises `UserError` for a name that is not among `SUITES`, or stands twice."""
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite: expected some of {', '.join(SUITES)}, got {name!r}")
        if names.count(name) > 1:
            raise UserError(f"--suite: {name} stands twice")
