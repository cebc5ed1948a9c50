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
        alive: [B] bool; idle ones ride along and change nothing that anybody reads.
        left: [B] int64: 0 in text; within an image its vectors to come, and one for its end token.
        budget: [B] int64 tokens and vectors that an answer may have.
        room: [B] int64 of these, how many are left.
        images: [B] int64 images that may still be begun.
        states: [B, H] the last state of each, which says what comes next.
        table: how each chooses text.
    """

    alive: Tensor
    left: Tensor
    budget: Tensor
    room: Tensor
    images: Tensor
    states: Tensor
    table: SamplingTable = field(repr=False)

    @classmethod
    def idle(
        cls, count: int, config: MetaMorphConfig, device: torch.device, dtype: torch.dtype
    ) -> "Slots":
        language = config.language
        left, budget, room, images = torch.zeros(4, count, dtype=torch.int64, device=device)
        return cls(
            torch.zeros(count, dtype=torch.bool, device=device),
            left,
            budget,
            room,
            images,
            torch.zeros(count, language.hidden_size, device=device, dtype=dtype),
            SamplingTable(count, language.vocab_size, device),
        )

    def narrow(self, rows: int) -> "Slots":
        """The first `rows` of them: views."""
        part = {name: tensor[:rows] for name, tensor in vars(self).items() if name != "table"}
        return Slots(**part, table=self.table.narrow(rows))

    def tensors(self) -> list[Tensor]:
        """All of them, those of the table too."""
        own = [tensor for name, tensor in vars(self).items() if name != "table"]
        return [*own, *vars(self.table).values()]

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
        self.alive[slot] = True
