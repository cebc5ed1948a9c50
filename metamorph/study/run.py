"""A study from its first training to its figures; a second run goes on with what is left."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from metamorph.errors import Stopped
from metamorph.signals import StopSignal
from metamorph.study.figure import DRAWINGS_RIGHT, QUESTIONS_RIGHT
from metamorph.study.folder import STUDY, claimed_folder
from metamorph.study.found import Found
from metamorph.study.measuring import train_cell, train_start
from metamorph.study.plan import Plan, Records, Training
from metamorph.study.results import TABLES, write_results
from metamorph.study.workers import Workers, workers


def study(output: Path, plan: Plan, jobs: int) -> Records:
    """Trains what has no record yet and writes tables and figures of all, also of those that the
    folder had before.

    Raises `UserError` for a folder that is of another study, or of none, `Stopped` if interrupted:
    what is done is kept, and the tables are of that.
    """
    with claimed_folder(output, plan) as plan:
        records = Records(output, plan)
        try:
            if records.left():
                with _interruptible(), workers(jobs) as pool:
                    _train(pool, output, records, jobs)
        except (KeyboardInterrupt, Stopped):
            done, of = len(records.done), len(plan.trainings)
            raise Stopped(
                f"stopped with {done} of {of} trainings done; the same command goes on"
            ) from None
        finally:
            write_results(output, records)
    return records


@contextmanager
def _interruptible() -> Generator[None]:
    """Whatever asks a run to stop does what Ctrl-C does: a training is short enough to be lost."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in StopSignal.SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _train(pool: Workers, output: Path, records: Records, jobs: int) -> None:
    scale, left = records.plan.scale, records.left()
    starts, work = output / "starts", output / "work"
    missing = {t.start: t for t in left if not (starts / t.start).exists()}
    print(f"{len(left)} trainings to do, {len(missing)} starts before", flush=True)
    calls = [(name, (starts / name, t.seed, t.cell, scale)) for name, t in missing.items()]
    for name, _ in pool.results(train_start, calls):
        print(f"start {name} is there", flush=True)
    cells = [(t, (work / t.name, starts / t.start, t.cell, t.seed, scale)) for t in left]
    for training, record in pool.results(train_cell, cells):
        records.add(training, record)
        print(_progress(training, record, records, jobs), flush=True)


def _progress(training: Training, record: dict, records: Records, jobs: int) -> str:
    scores = record["scores"]
    minutes = records.seconds_left() / jobs / 60
    return (
        f"{len(records.done)}/{len(records.plan.trainings)} {training.name}: "
        f"{QUESTIONS_RIGHT} {scores[QUESTIONS_RIGHT]:.1%}, "
        f"{DRAWINGS_RIGHT} {scores[DRAWINGS_RIGHT]:.1%}, "
        f"{sum(record['seconds'].values()):.0f} s; about {minutes:.0f} minutes left"
    )


def summary(output: Path, records: Records) -> str:
    """The verdicts, and where the rest is: what the command prints last."""
    found = [Found.of(figure, records) for figure in records.plan.figures]
    lines = [
        f"{each.figure.name:<4} {judged.verdict:<21} {judged.claim.claim}"
        for each in found
        for judged in each.judged
    ]
    return "\n".join([*lines, f"{output} holds {STUDY}, {TABLES} and a PNG for each figure"])
