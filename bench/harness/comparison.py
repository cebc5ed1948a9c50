"""Providers of one operation on one case: made, verified, timed in turn; each becomes a line."""

import traceback
from collections.abc import Callable

import torch

from bench.harness.results import Result, failed, timed
from bench.harness.timing import Candidate, measure


class Comparison:
    """Collects who takes part and who is absent; `results` then verifies and times them."""

    def __init__(self, operation: str, case: str):
        self.operation, self.case = operation, case
        self.absent: list[Result] = []
        self.makers: dict[str, Callable[[], Candidate]] = {}

    def add(self, name: str, make: Callable[[], Candidate], absence: str | None = None) -> None:
        """`make()` prepares and verifies a provider; it is not called where `absence` says why."""
        if absence is None:
            self.makers[name] = make
        else:
            self.absent.append(Result(self.operation, self.case, name, "absent", absence))

    def results(
        self, device: torch.device, work: float | None = None, unit: str | None = None
    ) -> list[Result]:
        """A line for each provider; one that fails, in whatever way, does not stop the others."""
        candidates, failures = {}, []
        for name, make in self.makers.items():
            try:
                candidate = make()
            except Exception as error:
                traceback.print_exc()  # the line has room for its last words only
                failures.append(failed(self.operation, self.case, name, error))
                continue
            if candidate.error <= candidate.bound:
                candidates[name] = candidate
            else:
                wrong = f"wrong: error {candidate.error:.1e}, bound {candidate.bound:.1e}"
                failures.append(failed(self.operation, self.case, name, wrong))
        times = measure(candidates, device)
        return [
            *self.absent,
            *failures,
            *(
                timed(self.operation, self.case, name, candidate, times[name], work, unit)
                for name, candidate in candidates.items()
            ),
        ]
