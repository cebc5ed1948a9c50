"""What a run will find in its data: counts, lengths, sizes, bad samples by cause, packing.

metamorph validate-data my.yaml
"""

import sys
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from tqdm import tqdm

from metamorph.config.data_keys import TooLong
from metamorph.data.bad_list import OnBad, ignore
from metamorph.data.conversation import ChatEncoder, Document
from metamorph.data.documents import Documents, DocumentsAhead, longer_than_a_row
from metamorph.data.images import opened
from metamorph.data.packing import RowStream
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.errors import SampleError

PACKED = 4096  # documents that are packed for the expected efficiency


@dataclass
class PartReport:
    """What was found in one part. Lengths are in tokens, of documents that can be used; there are
    none where only pictures count."""

    name: str
    samples: int  # of an epoch
    row_length: int
    skips: Skips = field(default_factory=Skips)
    lengths: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # of each document
    sides: list[int] = field(default_factory=list)  # of each image, the shorter one, in pixels
    visual_tokens: int = 0
    longer: int = 0  # documents that no row holds
    cut: int = 0  # documents of which a row holds the beginning

    @property
    def bad_share(self) -> float:
        """Of the samples that were looked at, those that training would skip."""
        return (self.skips.counts.total() + self.longer) / max(self.skips.tried, 1)

    def packing_efficiency(self) -> float:
        """Share of a packed row that is no padding, from packing the lengths that were found."""
        lengths = [length for length in self.lengths if length <= self.row_length][:PACKED]
        if not lengths:
            return 0.0
        stream = RowStream(_Lengths(lengths, self.row_length), pad_id=0)
        used, rows = 0, 0
        while rows == 0 or stream.next_index < len(lengths):
            used += next(stream).used
            rows += 1
        return used / (rows * self.row_length)

    def text(self) -> str:
        """The report as lines."""
        usable = len(self.images) - self.longer
        lines = [
            f"{self.name}: {self.skips.tried} of {self.samples} samples looked at, {usable} usable"
        ]
        if self.lengths:
            lines.append(f"  tokens: {_spread(self.lengths)}")
        if self.images:
            lines.append(
                f"  images a sample: mean {np.mean(self.images):.2f}, max {max(self.images)}"
            )
        if self.sides:
            lines.append(f"  shorter side of an image, in pixels: {_spread(self.sides)}")
        if self.lengths:
            visual = self.visual_tokens / sum(self.lengths)
            lines += [
                f"  share of tokens: visual {visual:.0%}, text {1 - visual:.0%}",
                f"  rows of {self.row_length}: {self.packing_efficiency():.1%} full when packed",
            ]
        if self.cut:
            lines.append(f"  cut: {self.cut} longer than a row of {self.row_length}")
        if self.longer:
            lines.append(f"  bad: {self.longer} longer than a row of {self.row_length}")
        for cause, (count, example) in self.skips.by_cause().items():
            lines.append(f"  bad: {count} {cause} (first: {example})")
        return "\n".join(lines)


def _spread(values: list[int]) -> str:
    low, middle, high, most = (
        int(np.percentile(values, share, method="nearest")) for share in (0, 50, 95, 100)
    )
    return f"min {low}, median {middle}, 95% {high}, max {most}"


def validate_part(
    name: str,
    source: Source,
    encoder: ChatEncoder | None,
    row_length: int,
    *,
    samples: int = 0,
    workers: int = 0,
    too_long: TooLong = "skip",
    on_bad: OnBad = ignore,
) -> PartReport:
    """Looks at the first `samples` of a source, 0 for all, with every image opened.

    Without an `encoder` only pictures count, as for the decoder. `too_long` as in `Documents`.
    """
    report = PartReport(name, len(source), row_length)
    checked = min(samples or len(source), len(source))
    documents = (
        _Pictures(source)
        if encoder is None
        else _Checked(
            source,
            encoder,
            row_length if too_long == "truncate" else sys.maxsize,
            too_long=too_long,
        )
    )
    ahead = DocumentsAhead(documents, workers, stride=1, readers=1) if workers else None
    try:
        for index in tqdm(range(checked), desc=name, unit=" samples", mininterval=1):
            report.skips.tried += 1
            try:
                document = cast(_Seen, (ahead or documents).document(index))
            except SampleError as error:
                report.skips.add(error)
                on_bad(name, error)
                continue
            report.images.append(len(document.sides))
            report.sides += document.sides
            if encoder is None:
                continue
            report.lengths.append(len(document))
            report.visual_tokens += len(document.spans) * encoder.tokens_per_image
            report.cut += document.was_cut
            if len(document) > row_length:
                report.longer += 1
                on_bad(name, longer_than_a_row(document, row_length))
    finally:
        if ahead is not None:
            ahead.close()
    return report


@dataclass
class _Seen(Document):
    """A document whose images were opened and closed again."""

    sides: list[int] = field(default_factory=list)  # of each image, the shorter one


class _Checked(Documents):
    """Documents whose images were opened and closed again."""

    def document(self, index: int) -> _Seen:
        document = super().document(index)
        sides = [min(opened(image).size) for image in document.images]
        return _Seen(**vars(document) | {"images": (), "sides": sides})


class _Pictures:
    """The pictures of samples as documents without a token."""

    row_length = 0

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def document(self, index: int) -> _Seen:
        with skippable(f"sample {index}"):
            sample = self.source.sample(index)
        with located(sample.where or f"sample {sample.id}"):
            sides = [min(opened(image).size) for image in sample.images]
        return _Seen(sample.id, sides=sides)


@dataclass
class _Lengths:
    """Empty documents of given lengths, to see how they pack."""

    lengths: list[int]
    row_length: int

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> Document:
        length = self.lengths[index % len(self.lengths)]
        return Document("", [0] * length, [False] * length)
