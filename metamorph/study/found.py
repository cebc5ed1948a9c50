"""The numbers behind a figure: scores at its points over the seeds, and its claims judged."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from metamorph.study.cells import Cell
from metamorph.study.figure import Figure, Point
from metamorph.study.plan import Records, Training
from metamorph.study.verdicts import Judged, Scores, Spread, judge


@dataclass(frozen=True)
class Found:
    """A figure with the spread of each score at each point, None where nothing is trained yet, and
    with its claims judged."""

    figure: Figure
    spreads: dict[str, list[Spread | None]]  # by score, in the order of the figure's points
    judged: tuple[Judged, ...]
    done: int  # trainings of the figure that have a record
    trainings: int

    @classmethod
    def of(cls, figure: Figure, records: Records) -> "Found":
        seeds = records.plan.seeds
        scores = {seed: _scores_of(records, seed) for seed in seeds}

        def known(cell: Cell) -> list[int]:
            return [seed for seed in seeds if Training(cell, seed) in records.done]

        def spread(point: Point, score: str) -> Spread | None:
            values = [scores[seed](point.cell)[score] for seed in known(point.cell)]
            return Spread.of(values) if values else None

        judged = []
        for claim in figure.claims:  # of the seeds that have all of its cells
            whole = [seed for seed in seeds if all(seed in known(cell) for cell in claim.cells)]
            judged.append(judge(claim, [scores[seed] for seed in whole]))
        done = sum(len(known(cell)) for cell in figure.cells)
        return cls(
            figure,
            {score: [spread(point, score) for point in figure.points] for score in figure.scores},
            tuple(judged),
            done,
            len(figure.cells) * len(seeds),
        )

    def described(self) -> dict:
        """All of it, JSON-able; the same records give the same."""
        figure = self.figure
        return {
            "title": figure.title,
            "paper": figure.paper,
            "trainings": {"done": self.done, "of": self.trainings},
            "points": [
                {
                    "series": point.series,
                    "label": point.label,
                    "cell": point.cell.name,
                    "scores": {
                        score: _described(spreads[place]) for score, spreads in self.spreads.items()
                    },
                }
                for place, point in enumerate(figure.points)
            ],
            "claims": [
                {
                    "claim": each.claim.claim,
                    "spread": _described(each.spread),
                    "verdict": each.verdict,
                }
                for each in self.judged
            ],
        }


def _described(spread: Spread | None) -> dict | None:
    return None if spread is None else asdict(spread)


def _scores_of(records: Records, seed: int) -> Callable[[Cell], Scores]:
    return lambda cell: records.done[Training(cell, seed)]["scores"]
