"""The whole job at toy size, in front of the user: train, answer, draw, report."""

import json
import shutil
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import nn

from metamorph import lock
from metamorph.config import RunConfig
from metamorph.config.reading import load_config
from metamorph.config.shipped import configs_folder
from metamorph.data.images import opened
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.decoder.kinds import open_decoder_for
from metamorph.disk import remove
from metamorph.errors import UserError
from metamorph.evaluation.checker import CHANCE
from metamorph.evaluation.contact_sheet import SheetDrawing, SheetEntry, contact_sheet
from metamorph.evaluation.report import versions
from metamorph.evaluation.scene_answers import Answer, answer_questions, question_accuracy
from metamorph.evaluation.scene_drawings import (
    Drawing,
    checker_accuracy,
    draw_scenes,
    drawing_scores,
    drawn_picture,
    redrawn,
)
from metamorph.evaluation.teacher_forcing import visual_cosines
from metamorph.evaluation.toy_tasks import (
    JUDGED,
    describe_split,
    drawing_tasks,
    other_questions,
    tasks_of,
)
from metamorph.generation.assistant import Assistant
from metamorph.model.language import Llama
from metamorph.model.language_config import LanguageConfig
from metamorph.quickstart.report import AnsweredQuestion, write_report
from metamorph.training.loop import train

ASSETS = Path(__file__).parent / "assets"
ONE_PASS_DECODER = ASSETS / "decoder_rae"
STAGES = ("language", "align", "instruct", "decoder")
DIFFUSION, ONE_PASS = DECODERS = "diffusion", "one pass"  # the first is trained here and joined
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
QUESTIONS = 300
SHOWN_QUESTIONS, SHOWN_CAPTIONS = 12, 8
OTHER_QUESTIONS = {"motion": 40, "other wordings": 100}
DRAWINGS = dict.fromkeys(JUDGED, 40) | {"captions": 150}
BARS = {"question_accuracy": 0.90, "checker_accuracy": 0.99}
CAPTION_BARS = {"mean_of_attributes": 0.75, "all_right": 0.50}  # shares, of diffusion
ONE_PASS_ALL_RIGHT = 0.90  # the same share of what the shipped decoder draws
ABOVE_CHANCE = 0.25  # of each drawn attribute
MARKER = "quickstart"  # a file that says that a folder may be replaced by the next quickstart


def build_start(folder: Path, seed: int, sizes: Mapping[str, Any] = SIZES) -> None:
    """A random small Llama of such `sizes` and the toy tokenizer, in Hugging Face's layout."""
    tokenizer = build_toy_tokenizer()
    torch.manual_seed(seed)
    language = Llama(
        LanguageConfig(
            **sizes,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            rope_theta=10000.0,
        )
    )
    nn.init.normal_(language.model.embed_tokens.weight, std=0.04)  # the scale of projected features
    language.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def claimed_folder(folder: Path) -> Generator[None]:
    """Makes the run folder, which is this quickstart's for as long as the body runs; replaces only
    what an earlier one wrote."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: {folder} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with lock.locked(folder, "--output"):
        content = [path for path in folder.iterdir() if path.name != lock.FILE]
        if content:
            if not (folder / MARKER).exists():
                raise UserError(f"--output: {folder} holds something else, expected a new folder")
            print(f"replacing the earlier quickstart in {folder}")
        for path in sorted(content, key=lambda path: path.name == MARKER):  # the marker is last
            remove(path)
        (folder / MARKER).touch()
        yield


def stage_config(stage: str, folder: Path, keys: Mapping[str, Any] | None = None) -> RunConfig:
    """The stage's YAML with its folders below `folder`, and `keys` {dotted key: value}, which go
    before those."""
    overrides = {"output": str(folder / "stages" / stage), "device": "cpu"}
    if stage == "language":
        overrides["model.language"] = str(folder / "start")
    if stage in ("language", "decoder"):
        overrides["model.vision"] = str(ASSETS / "encoder")
    if stage == "decoder":
        overrides["decoder.base"] = str(ASSETS / "decoder_base")
    if stage in ("align", "instruct"):
        before = {"align": "language", "instruct": "align"}[stage]
        overrides["model.folder"] = str(folder / "stages" / before / "model")
    return load_config(configs_folder() / "toy" / f"{stage}.yaml", overrides | dict(keys or {}))


def evaluate(
    chat: Assistant,
) -> tuple[dict, list[Answer], dict[str, dict[str, list[Drawing]]]]:
    """Scores on the held-out split, with the answers and, by decoder and by kind, the drawings
    behind them: both decoders draw from the same predicted features."""
    answers = answer_questions(chat, tasks_of("question", QUESTIONS))
    tasks = {kind: drawing_tasks(kind, count) for kind, count in DRAWINGS.items()}
    one_pass = open_decoder_for(
        ONE_PASS_DECODER, chat.model.config, chat.model.encoder, chat.device
    )
    drawings: dict[str, dict[str, list[Drawing]]] = {name: {} for name in DECODERS}
    for kind, judged in JUDGED.items():
        drawn = draw_scenes(chat, tasks[kind], judged)
        drawings[DIFFUSION][kind] = drawn
        drawings[ONE_PASS][kind] = redrawn(one_pass, drawn)
    others = {}
    for kind, count in OTHER_QUESTIONS.items():
        answered = answer_questions(chat, other_questions(kind, count))
        right = sum(answer.right for answer in answered)
        others[kind] = {"questions": len(answered), "right": right}
    accuracy, by_attribute = question_accuracy(answers)
    cosines = visual_cosines(
        chat,
        [task.sample for task in tasks["captions"]],
        [drawn_picture(task) for task in drawing_tasks("captions", 500, "train")],
    )
    report = {
        "questions": len(answers),
        "questions_right": sum(answer.right for answer in answers),
        "question_accuracy": accuracy,
        "question_accuracy_by_attribute": by_attribute,
        "other_questions": others,
        "drawings": {
            decoder: {kind: drawing_scores(drawn) for kind, drawn in by_kind.items()}
            for decoder, by_kind in drawings.items()
        },
        "checker_accuracy": checker_accuracy(tasks["captions"]),
        "visual_cosine": fmean(cosines.model),
        "mean_baseline_cosine": fmean(cosines.mean_baseline),
        "held_out": describe_split(),
    }
    return report, answers, drawings


def quickstart(output: Path, seed: int = 0) -> dict:
    """Trains all stages, evaluates, and writes the model and the report below `output`."""
    with claimed_folder(output):
        return _quickstart(output, seed)


def _quickstart(output: Path, seed: int) -> dict:
    started = time.perf_counter()
    print("1/6 start: a random small language model and its tokenizer")
    build_start(output / "start", seed)
    seconds = {}
    for number, stage in enumerate(STAGES, start=2):
        config = stage_config(stage, output)
        config.seed = seed
        print(f"{number}/6 {stage}: {config.training.steps} steps")
        stage_started = time.perf_counter()
        result = train(config)
        seconds[stage] = time.perf_counter() - stage_started
        if stage == "instruct":
            shutil.copytree(result, output / "model")
        if stage == "decoder":
            shutil.copytree(result, output / "model" / "decoder")

    print("6/6 evaluation: held-out questions and drawings")
    stage_started = time.perf_counter()
    report, answers, drawings = evaluate(Assistant.from_pretrained(output / "model"))
    seconds["evaluation"] = time.perf_counter() - stage_started
    captions = {name: drawn["captions"][:SHOWN_CAPTIONS] for name, drawn in drawings.items()}
    caption_sheet(captions).save(output / "samples.png")
    report |= {
        "seconds": time.perf_counter() - started,
        "seconds_by_stage": seconds,
        "versions": versions(),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    shown = [
        AnsweredQuestion(
            opened(a.task.sample.images[0]),
            a.task.sample.turns[0].text.removeprefix("<image>"),
            a.text,
            a.task.sample.turns[1].text,
        )
        for a in answers[:SHOWN_QUESTIONS]
    ]
    stages = {stage: output / "stages" / stage for stage in STAGES}
    write_report(output, report, stages, shown, output / "samples.png")
    return report


def caption_sheet(drawings: dict[str, list[Drawing]]) -> Image.Image:
    """Each caption with the real picture and, by decoder, the drawings of it."""
    return contact_sheet(
        [
            SheetEntry(
                drawn[0].task.sample.turns[0].text,
                opened(drawn[0].task.sample.images[-1]),
                {
                    decoder: SheetDrawing(drawing.picture, drawing.right)
                    for decoder, drawing in zip(drawings, drawn, strict=True)
                },
            )
            for drawn in zip(*drawings.values(), strict=True)
        ],
        columns=2,
    )


def missed_bars(report: dict) -> list[str]:
    """What the run should have reached and did not, in words; empty for a good run."""
    missed = [
        f"{name} is {report[name]:.3f}, expected at least {bar}"
        for name, bar in BARS.items()
        if report[name] < bar
    ]
    captions = report["drawings"][DIFFUSION]["captions"]
    shares = {
        "mean_of_attributes": captions["mean_of_attributes"],
        "all_right": captions["all_right"] / captions["drawings"],
    }
    missed += [
        f"{name} of captions is {shares[name]:.3f}, expected at least {bar}"
        for name, bar in CAPTION_BARS.items()
        if shares[name] < bar
    ]
    for name, right in captions["attributes"].items():
        share = right / captions["drawings"]
        if share < CHANCE[name] + ABOVE_CHANCE:
            missed.append(f"drawn {name} is {share:.3f}, expected {ABOVE_CHANCE} above chance")
    one_pass = report["drawings"][ONE_PASS]["captions"]
    share = one_pass["all_right"] / one_pass["drawings"]
    if share < ONE_PASS_ALL_RIGHT:
        missed.append(
            f"all_right of captions in one pass is {share:.3f}, expected at least "
            f"{ONE_PASS_ALL_RIGHT}"
        )
    return missed


def scores(report: dict) -> str:
    """The scores as the console and the README show them."""
    drawings = [*report["drawings"].values()]  # by decoder
    captions = [by_kind["captions"] for by_kind in drawings]
    return "\n".join(
        [
            f"held-out questions answered right: {report['question_accuracy']:.1%} "
            f"({report['questions_right']} of {report['questions']})",
            *(
                f"  {kind} {other['right'] / other['questions']:.1%} "
                f"({other['right']} of {other['questions']})"
                for kind, other in report["other_questions"].items()
            ),
            "held-out drawings with all attributes right, the same features drawn by each decoder:",
            _row("", report["drawings"]),
            *(_row(kind, [_all_right(d[kind]) for d in drawings]) for kind in drawings[0]),
            f"attributes of the {captions[0]['drawings']} captions drawn right:",
            _row("mean", [f"{drawn['mean_of_attributes']:.1%}" for drawn in captions]),
            *(
                _row(name, [f"{d['attributes'][name] / d['drawings']:.1%}" for d in captions])
                for name in captions[0]["attributes"]
            ),
            f"visual cosine {report['visual_cosine']:.3f}, predicting the mean gives "
            f"{report['mean_baseline_cosine']:.3f}",
        ]
    )


def _row(name: str, by_decoder: Iterable[str]) -> str:
    return f"  {name:<14}  {''.join(f'{each:<20}' for each in by_decoder)}".rstrip()


def _all_right(drawn: dict) -> str:
    share = drawn["all_right"] / drawn["drawings"]
    return f"{share:.1%} ({drawn['all_right']} of {drawn['drawings']})"


def summary(report: dict, output: Path) -> str:
    """What the command prints last."""
    return (
        f"{scores(report)}\n"
        f"finished in {report['seconds']:.0f} s\n"
        f"  model     {output / 'model'}\n"
        f"  pictures  {output / 'samples.png'}\n"
        f"  report    {output / 'report.html'}"
    )
