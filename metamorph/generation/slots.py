"""What decides the next step of each sequence, as tensors on the device."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metamorph.generation.sampling import SamplingTable
from metamorph.generation.settings import Sampling
from metamorph.model.unified import MetaMorphConfig

UNLIMITED = 2**40  # images, tokens: more than any budget


@dataclass
class Slots:
    """B sequences. Each is idle, or in one of three modes by how much of an image is `left`.

    Attributes:
        counts: [5, B] int64, of which the following are the rows.
        alive: 1, or 0 for idle ones, which ride along and change nothing that anybody reads.
        left: 0 in text; within an image its vectors to come, and one for its end token.
        room: tokens and vectors that its answer may still have.
        budget: those that it may have altogether.
        images: images that may still be begun.
        states: [B, H] the last state of each, which says what comes next.
        table: how each chooses text.
    """

    counts: Tensor
    states: Tensor
    table: SamplingTable = field(repr=False)

    def __post_init__(self):
        self.alive, self.left, self.room, self.budget, self.images = self.counts.unbind()

    @classmethod
    def idle(
        cls, count: int, config: MetaMorphConfig, device: torch.device, dtype: torch.dtype
    ) -> "Slots":
        language = config.language
        return cls(
            torch.zeros(5, count, dtype=torch.int64, device=device),
            torch.zeros(count, language.hidden_size, device=device, dtype=dtype),
            SamplingTable(count, language.vocab_size, device),
        )

    def narrow(self, rows: int) -> "Slots":
        """The first `rows` of them: views."""
        return Slots(self.counts[:, :rows], self.states[:rows], self.table.narrow(rows))

    def tensors(self) -> list[Tensor]:
        """All of them, those of the table too."""
        return [self.counts, self.states, *vars(self.table).values()]

    def set_request(
        self, slot: int, sampling: Sampling, seen: Tensor, budget: int, max_images: int | None
    ) -> None:
        """A new request in an idle slot; `seen` int64 [n] are the text tokens of its prompt."""
        self.table.set(slot, sampling, seen)
        self.budget[slot] = budget
        self.room[slot] = budget
        self.images[slot] = UNLIMITED if max_images is None else max_images

    def wake(self, slot: int, state: Tensor, left: int) -> None:
        """Its prompt is read: it goes on from `state` [H], within an image if `left` is not 0."""
        self.states[slot] = state.to(self.states.dtype)
        self.left[slot] = left
        self.alive[slot] = 1
