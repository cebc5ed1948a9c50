"""Which steps were not finite, asked of the device once for many of them."""

import torch
from torch import Tensor

from metamorph.errors import UserError
from metamorph.processes import gather

SHOWN = 32  # sample ids of a bad step that are written down


class BadSteps:
    """Steps whose loss or gradient was not finite. They changed nothing; here they are told apart.

    `most`: so many in a row are an error.
    """

    def __init__(self, most: int):
        self.most = most
        self.unread: list[tuple[int, Tensor, list[str]]] = []
        self.in_a_row = 0
        self.found: list[dict] = []  # since the last log line

    def add(self, step: int, bad: Tensor, samples: list[str]) -> None:
        """A step that is done, whether it was bad (a bool of the device), and its sample ids."""
        self.unread.append((step, bad, samples))

    def read(self) -> None:
        """Asks the device about all steps since the last time.

        Raises `UserError` if `most` in a row were bad.
        """
        if not self.unread:
            return
        bad = torch.stack([flag for _, flag, _ in self.unread]).tolist()
        for (step, _, samples), is_bad in zip(self.unread, bad, strict=True):
            self.in_a_row = self.in_a_row + 1 if is_bad else 0
            if is_bad:
                everywhere = [name for names in gather(samples) for name in names]
                self.found.append({"step": step, "samples": everywhere[:SHOWN]})
                if self.in_a_row >= self.most:
                    raise UserError(
                        f"step {step}: a loss or gradient is not finite, for the {self.most}. time "
                        f"in a row (training.max_bad_steps); its samples were {everywhere[:8]}. "
                        f"Look at them or lower the learning rate; none of these steps changed the "
                        f"weights"
                    )
        self.unread = []

    def take(self) -> list[dict]:
        """Step and samples of each bad step since the last log line."""
        found, self.found = self.found, []
        return found

    def state_dict(self) -> dict:
        self.read()
        return {"in_a_row": self.in_a_row, "found": self.found}

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row, self.found = state["in_a_row"], list(state["found"])
