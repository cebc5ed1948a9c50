"""Samples of a source as documents whose images are open, or whose features are read.

Document `index` is a pure function of `index`; so it may be made anywhere, in any order, and
`DocumentsAhead` lets other processes make the next ones.
"""

from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from metamorph.config.data_keys import TooLong
from metamorph.data.ahead import Ahead
from metamorph.data.conversation import ChatEncoder, Document
from metamorph.data.features import FeatureFolder
from metamorph.data.images import key_of, opened
from metamorph.data.skips import located, skippable
from metamorph.data.sources import Source
from metamorph.errors import SampleError
from metamorph.pixels import Square


class Documents:
    """What `RowStream` packs.

    `square`: images are squashed as the encoder would do it, to keep those that wait small; without
    it they keep their size. `features` replaces images by cached features. `too_long`: skip or
    truncate, what becomes of a sample that is longer than a row.
    """

    def __init__(
        self,
        source: Source,
        encoder: ChatEncoder,
        row_length: int,
        square: Square | None = None,
        features: FeatureFolder | None = None,
        too_long: TooLong = "skip",
    ):
        self.source, self.encoder, self.row_length = source, encoder, row_length
        self.square, self.features, self.too_long = square, features, too_long

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.source)

    def document(self, index: int) -> Document:
        """Raises `SampleError` if it is unusable or longer than a row."""
        with skippable(f"sample {index}"):
            sample = self.source.sample(index)
        where = sample.where or f"sample {sample.id}"
        with located(where):
            document = self.encoder.encode(sample)
            if len(document) > self.row_length:
                document = self._cut(document)
            if self.features is not None:
                features = self.features.read([key_of(image) for image in document.images])
                return replace(document, images=(), features=features)
            return replace(document, images=tuple(map(self._opened, document.images)))

    def _cut(self, document: Document) -> Document:
        """What a row holds of it. `SampleError` if nothing of that can be learned, or if asked."""
        if self.too_long == "truncate":
            beginning = document.cut(self.row_length)
            if any(beginning.supervised):
                return beginning
        raise longer_than_a_row(document, self.row_length)

    def _opened(self, image) -> Image.Image:
        image = opened(image)
        return image if self.square is None else self.square(image)


def longer_than_a_row(document: Document, row_length: int) -> SampleError:
    """Names both keys by which it could be used."""
    return SampleError(
        "longer than a row",
        f"sample {document.sample_id}: {len(document)} tokens, "
        f"a row holds {row_length} (data.row_length; data.too_long: truncate cuts samples)",
    )


class DocumentSource(Protocol):
    """`Documents`, or the same made ahead."""

    row_length: int

    def __len__(self) -> int: ...

    def document(self, index: int) -> Document: ...


class DocumentsAhead(Ahead[tuple[Document, np.ndarray | None]]):
    """The same documents, prepared by other processes, see `Ahead`."""

    def __init__(self, documents: DocumentSource, workers: int, stride: int, readers: int):
        super().__init__(partial(_without_tensors, documents), workers, stride, readers)
        self.documents, self.row_length = documents, documents.row_length

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, index: int) -> Document:
        """As `Documents.document`; waits until it is there."""
        document, features = self.take(index)
        return document if features is None else replace(document, features=torch.tensor(features))


def _without_tensors(documents: DocumentSource, index: int) -> tuple[Document, np.ndarray | None]:
    """The document, and its features apart, as an array."""
    document = documents.document(index)
    if document.features is None:
        return document, None
    return replace(document, features=None), document.features.numpy()
