"""What a run will find in its data: counts, lengths, bad samples by cause, packing.

metamorph validate-data my.yaml
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from metamorph.data.conversation import ChatEncoder, Document
from metamorph.data.documents import Documents, DocumentsAhead
from metamorph.data.packing import RowStream
from metamorph.data.skips import Skips
from metamorph.data.sources import Source
from metamorph.errors import SampleError

PACKED = 4096  # documents that are packed for the expected efficiency


@dataclass
class PartReport:
    """What was found in one part. Lengths are in tokens, of documents that can be used."""

    name: str
    samples: int  # of an epoch
    row_length: int
    skips: Skips = field(default_factory=Skips)
    lengths: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # of each document
    visual_tokens: int = 0
    longer: int = 0  # documents that no row holds

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
        usable = len(self.lengths) - self.longer
        lines = [
            f"{self.name}: {self.skips.tried} of {self.samples} samples looked at, {usable} usable"
        ]
        if self.lengths:
            low, middle, high, most = (
                int(np.percentile(self.lengths, share, method="nearest"))
                for share in (0, 50, 95, 100)
            )
            total = sum(self.lengths)
            lines += [
                f"  tokens: min {low}, median {middle}, 95% {high}, max {most}",
                f"  images a sample: mean {np.mean(self.images):.2f}, max {max(self.images)}",
                f"  share of tokens: visual {self.visual_tokens / total:.0%}, "
                f"text {1 - self.visual_tokens / total:.0%}",
                f"  rows of {self.row_length}: {self.packing_efficiency():.1%} full when packed",
            ]
        if self.longer:
            lines.append(f"  bad: {self.longer} longer than a row of {self.row_length}")
        for cause, (count, example) in self.skips.by_cause().items():
            lines.append(f"  bad: {count} {cause} (first: {example})")
        return "\n".join(lines)


def validate_part(
    name: str,
    source: Source,
    encoder: ChatEncoder,
    row_length: int,
    *,
    samples: int = 0,
    workers: int = 0,
) -> PartReport:
    """Looks at the first `samples` of a source, 0 for all, with every image opened."""
    report = PartReport(name, len(source), row_length)
    checked = min(samples or len(source), len(source))
    documents = _Checked(source, encoder)
    ahead = DocumentsAhead(documents, workers, stride=1, readers=1) if workers else None
    try:
        for index in tqdm(range(checked), desc=name, unit=" samples", mininterval=1):
            report.skips.tried += 1
            try:
                document = (ahead or documents).document(index)
            except SampleError as error:
                report.skips.add(error)
                continue
            report.lengths.append(len(document))
            report.images.append(len(document.spans))
            report.visual_tokens += len(document.spans) * encoder.tokens_per_image
            report.longer += len(document) > row_length
    finally:
        if ahead is not None:
            ahead.close()
    return report


class _Checked(Documents):
    """Documents of any length, whose images were opened and closed again."""

    def __init__(self, source: Source, encoder: ChatEncoder):
        super().__init__(source, encoder, row_length=sys.maxsize)

    def document(self, index: int) -> Document:
        document = super().document(index)
        document.images = ()
        return document


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
