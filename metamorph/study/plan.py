"""Which trainings a study has, which of them are done, and how long the others will take."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from metamorph.disk import write_text
from metamorph.errors import UserError, shown
from metamorph.study.cells import Cell
from metamorph.study.figure import Figure
from metamorph.study.figures import figures
from metamorph.study.scale import FULL, Scale

# On one core of a server's CPU; the seconds of finished trainings take their place.
SECONDS_PER_TOKEN = 1.2e-4
SECONDS_PER_SCORES = 5.0
SECONDS_PER_START = 35.0
RECORDS = "records"


@dataclass(frozen=True)
class Training:
    """A cell with a seed."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell.name}.seed-{self.seed}"

    @property
    def start(self) -> str:
        """The name of the folder that it starts from."""
        grid, prompt_images = self.cell.start
        return f"seed-{self.seed}.grid-{grid}.{prompt_images}"


@dataclass(frozen=True)
class Plan:
    """The whole grid of a study."""

    figures: tuple[Figure, ...]
    seeds: tuple[int, ...]
    scale: Scale

    @classmethod
    def of(cls, names: Sequence[str], seeds: int, scale: Scale) -> "Plan":
        """Of figures by name. Raises `UserError` for a name that is none."""
        known = figures(scale)
        for name in names:
            if name not in known:
                expected = ", ".join(known)
                raise UserError(f"--figure: there is no {shown(name)}, expected some of {expected}")
        return cls(tuple(known[name] for name in dict.fromkeys(names)), tuple(range(seeds)), scale)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Each once, figure by figure."""
        return tuple(dict.fromkeys(cell for figure in self.figures for cell in figure.cells))

    @property
    def trainings(self) -> list[Training]:
        """All seeds of a cell before the next cell, so that what is done first can be judged."""
        return [Training(cell, seed) for cell in self.cells for seed in self.seeds]

    def described(self) -> dict:
        """What makes it another study, JSON-able."""
        described = {
            "figures": [figure.name for figure in self.figures],
            "seeds": list(self.seeds),
            "scale": asdict(self.scale),
            "cells": {cell.name: cell.described() for cell in self.cells},
        }
        return json.loads(json.dumps(described))  # as a file gives it back


def seconds_of(training: Training, scale: Scale) -> float:
    """An estimate, on one core."""
    tasks = (scale.questions + scale.drawings) / (FULL.questions + FULL.drawings)
    return training.cell.tokens * SECONDS_PER_TOKEN + SECONDS_PER_SCORES * tasks


class Records:
    """The records of a study's folder: one JSON file for each finished training."""

    def __init__(self, output: Path, plan: Plan):
        self.folder, self.plan = output / RECORDS, plan
        self.done = {t: self._read(t) for t in plan.trainings if self.path(t).exists()}

    def path(self, training: Training) -> Path:
        return self.folder / f"{training.name}.json"

    def add(self, training: Training, record: dict) -> None:
        """Writes it, whole or not at all."""
        write_text(self.path(training), json.dumps(record, indent=2, allow_nan=False) + "\n")
        self.done[training] = record

    def _read(self, training: Training) -> dict:
        path = self.path(training)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if self._is_of(training, record):
                return record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise UserError(
            f"{path} is not the record of {training.name}; remove it, and it is trained anew"
        )

    def _is_of(self, training: Training, record: dict) -> bool:
        """Is it this training's, with all that is read of it? One of another version of the study
        may lack a score."""
        of_cell = [f.measured for f in self.plan.figures if training.cell in f.cells]
        return (
            record["cell"] == training.cell.described()
            and record["seed"] == training.seed
            and set().union(*of_cell) <= record["scores"].keys()
            and sum(record["seconds"].values()) > 0
        )

    def left(self) -> list[Training]:
        """Trainings without a record."""
        return [training for training in self.plan.trainings if training not in self.done]

    def seconds_left(self) -> float:
        """An estimate, on one core: by what the finished ones took, beside what was reckoned."""
        scale = self.plan.scale
        left = sum(seconds_of(training, scale) for training in self.left())
        if not self.done:
            return left + SECONDS_PER_START * len({training.start for training in self.left()})
        took = sum(sum(record["seconds"].values()) for record in self.done.values())
        return left * took / sum(seconds_of(training, scale) for training in self.done)
