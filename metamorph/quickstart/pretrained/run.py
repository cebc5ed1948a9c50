"""A pretrained language model reads and draws: with what was taught before, or taught here."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from metamorph.devices import resolve_device
from metamorph.errors import UserError
from metamorph.evaluation.model_report import measure_model, model_sheet, model_tables
from metamorph.evaluation.options import Options
from metamorph.evaluation.page import in_text
from metamorph.evaluation.report import heading, write_report
from metamorph.evaluation.task_source import SOURCES
from metamorph.quickstart.pretrained.language import cached_language
from metamorph.quickstart.pretrained.result import SHIPPED, build_model
from metamorph.quickstart.pretrained.training import claimed_training, train_smollm2
from metamorph.quickstart.run import claimed_folder

WORDING = "english-held_out"
SUITES = ["questions", "captions"]
TRIED, MEASURED = 20, 200  # samples of each suite: of a first look, and after a training
SHOWN = 12


def try_smollm2(output: Path, command: Sequence[str]) -> None:
    """Makes the model of what the package ships below `output`, and has it answer and draw."""
    if not SHIPPED.is_dir():
        raise UserError(f"{SHIPPED} is not there; --train teaches the language model here")
    language = cached_language()  # before an earlier look is replaced
    with claimed_folder(output):
        build_model(SHIPPED, language, output / "model")
        measure(output, command, TRIED, seed=0)


def train_and_try_smollm2(output: Path, command: Sequence[str], seed: int) -> None:
    """The same of what it is taught below `output`, which a stopped training goes on with."""
    with claimed_training(output, seed):
        language = cached_language()
        adapter = train_smollm2(output, language, seed, shlex.join(command))
        if not (output / "model").exists():  # it appears whole or not at all
            build_model(adapter, language, output / "model")
        measure(output, command, MEASURED, seed)


def measure(output: Path, command: Sequence[str], count: int, seed: int) -> None:
    """Asks the model in sentences that its training never said, about combinations that it never
    showed; writes and prints what came of it."""
    print("held-out scenes, asked about in held-out words")
    options = Options(count, seed, source=SOURCES[WORDING])
    device = resolve_device("auto")
    report, samples = measure_model(output / "model", device, options, SUITES)
    sheet = model_sheet(samples, SHOWN)
    assert sheet is not None  # of captions
    sheet.save(output / "samples.png")
    write_report(output / "evaluation.json", heading(command, seed, str(device)) | report)
    print(in_text(model_tables(report, samples)))
    print(
        f"  model     {output / 'model'}\n"
        f"  pictures  {output / 'samples.png'}\n"
        f"  report    {output / 'evaluation.json'}\n"
        f"talk to it: metamorph chat --model {output / 'model'}"
    )
