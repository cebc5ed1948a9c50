"""Documents into rows of `T` tokens, with every index that a step needs planned on the CPU.

What predicts what: a response token at p is predicted by the state at p - 1, and so is a visual
token of a response image. Hence `<image_start>` predicts the first visual token and the last
visual token predicts `<image_end>`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from metamorph.data.conversation import Document
from metamorph.data.documents import DocumentSource
from metamorph.data.skips import Skips
from metamorph.errors import SampleError, UserError
from metamorph.processes import totals

LOOKAHEAD = 32  # documents that may wait for a row with room
MOST_IN_A_ROW = 10_000  # unusable samples, before a lane gives up


@dataclass(frozen=True)
class PackedRow:
    """One row of documents. All indices are int64 CPU tensors; padding is a document of its own.

    `token_ids` [T] holds `<image_start>`'s id at visual positions, where it is not embedded.
    `visual_positions` [Nv] says where the flattened features of `images` go.
    `text_rows` / `text_labels` [Nt]: states that predict text, and what they predict.
    `visual_rows` / `visual_targets` [Nr]: states that predict features, and the rows of the
    flattened features that they predict.
    """

    token_ids: Tensor
    positions: Tensor
    document_lengths: tuple[int, ...]
    images: tuple[Image.Image, ...]
    visual_positions: Tensor
    text_rows: Tensor
    text_labels: Tensor
    visual_rows: Tensor
    visual_targets: Tensor
    sample_ids: tuple[str, ...]
    used: int  # tokens that are not padding
    features: Tensor | None = None  # [images, tokens, C] in place of images, where cached
    bidirectional_spans: tuple[tuple[int, int], ...] = ()  # images of prompts that see all of them


@dataclass(frozen=True)
class TargetCounts:
    """Targets of a whole optimizer step, over all of its rows and processes, and the `tokens` of
    its rows that are not padding."""

    text: int
    visual: int
    tokens: int = 0

    @classmethod
    def of(cls, rows: list[PackedRow]) -> "TargetCounts":
        """Those of a step whose rows of this process are `rows`. All processes call this."""
        text, visual, tokens = totals(
            [
                sum(len(row.text_rows) for row in rows),
                sum(len(row.visual_rows) for row in rows),
                sum(row.used for row in rows),
            ]
        )
        return cls(text, visual, tokens)


def pack_row(documents: list[Document], row_length: int, pad_id: int) -> PackedRow:
    """Lays documents one after another. Raises `ValueError` if they do not fit."""
    lengths = [len(document) for document in documents]
    used = sum(lengths)
    if used > row_length:
        raise ValueError(f"documents of {used} tokens do not fit a row of {row_length}")
    token_ids, positions, images = [], [], []
    visual_positions, text_rows, text_labels, visual_rows, visual_targets = [], [], [], [], []
    whole: list[tuple[int, int]] = []
    for document in documents:
        start = len(token_ids)
        token_ids += document.token_ids
        positions += range(len(document))
        for at, (token, supervised) in enumerate(
            zip(document.token_ids, document.supervised, strict=True)
        ):
            if supervised:
                text_rows.append(start + at - 1)
                text_labels.append(token)
        for (first, end), is_target in zip(document.spans, document.is_target, strict=True):
            if is_target:
                visual_rows += range(start + first - 1, start + end - 1)
                visual_targets += range(len(visual_positions), len(visual_positions) + end - first)
            visual_positions += range(start + first, start + end)
        whole += [(start + first, start + end) for first, end in document.bidirectional_spans]
        images += document.images
    padding = row_length - used
    if padding:
        lengths.append(padding)
        token_ids += [pad_id] * padding
        positions += range(padding)

    cached = [document.features for document in documents if document.features is not None]

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return PackedRow(
        index(token_ids), index(positions), tuple(lengths), tuple(images), index(visual_positions),
        index(text_rows), index(text_labels), index(visual_rows), index(visual_targets),
        tuple(document.sample_id for document in documents), used,
        torch.cat(cached) if cached else None, tuple(whole),
    )  # fmt: skip


class RowStream(Iterator[PackedRow]):
    """Packed rows of one lane, endless: first fit, with a bounded number of waiting documents.

    Lane l of n packs the samples at l, l + n, l + 2n, ... by itself; lane 0 of 1 packs them all.
    With an `end` it packs those before it, each once, and then gives rows of padding alone.
    Unusable samples and documents longer than a row are skipped and counted in `skips` by cause.
    `state_dict` is small and exact: a stream that loads it goes on with the same rows.
    """

    def __init__(
        self,
        documents: DocumentSource,
        pad_id: int,
        lane: int = 0,
        lanes: int = 1,
        end: int | None = None,
    ):
        self.documents, self.pad_id, self.end = documents, pad_id, end
        self.row_length = documents.row_length
        self.lanes, self.next_index = lanes, lane
        self.waiting: list[tuple[int, Document]] = []
        self.skips = Skips()

    @property
    def used(self) -> int:
        """Samples that are in a row or were skipped."""
        return self.skips.tried - len(self.waiting)

    def _next_document(self) -> tuple[int, Document] | None:
        """The next that can be used; None at the end."""
        # Orders differ by epoch: only two epochs' worth in a row surely holds every sample.
        tries = min(2 * len(self.documents), MOST_IN_A_ROW)
        for _ in range(tries):
            index = self.next_index
            if self.end is not None and index >= self.end:
                return None
            self.next_index += self.lanes
            self.skips.tried += 1
            try:
                return index, self.documents.document(index)
            except SampleError as error:
                self.skips.add(error)
        raise UserError(
            f"no usable sample among {tries} in a row; first of each cause: {self.skips.examples}"
        )

    def __next__(self) -> PackedRow:
        row: list[Document] = []
        room = self.row_length
        still_waiting = []
        for index, document in self.waiting:
            if len(document) <= room:
                row.append(document)
                room -= len(document)
            else:
                still_waiting.append((index, document))
        self.waiting = still_waiting
        while len(self.waiting) < LOOKAHEAD and room > 0:
            found = self._next_document()
            if found is None:
                break
            index, document = found
            if len(document) <= room:
                row.append(document)
                room -= len(document)
            else:
                self.waiting.append((index, document))
                if room < self.row_length // 64:
                    break  # nearly full: looking further would only hold documents back
        return pack_row(row, self.row_length, self.pad_id)

    def state_dict(self) -> dict:
        waiting = [index for index, _ in self.waiting]
        return {"next_index": self.next_index, "waiting": waiting, **self.skips.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.waiting = [(index, self.documents.document(index)) for index in state["waiting"]]
        self.next_index = state["next_index"]
        self.skips.load_state_dict(state)
