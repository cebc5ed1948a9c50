"""Samples that no row holds: left out, or cut before an image rather than within one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.data.conversation import ASSISTANT, USER, Document, Sample, Turn
from metamorph.data.documents import Documents
from metamorph.data.packing import RowStream, pack_row
from metamorph.data.toy.source import ToyScenes
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.data.validate import validate_part
from metamorph.errors import SampleError, UserError

ALL_KINDS = dict.fromkeys(KINDS, 1.0)
PICTURE = Image.new("RGB", (8, 8))


class Same:
    """One sample over and over."""

    def __init__(self, *texts: str):
        turns = tuple(Turn((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(texts))
        images = (PICTURE,) * sum(text.count("<image>") for text in texts)
        self.written = Sample("long", turns, images)

    def __len__(self) -> int:
        return 3

    def sample(self, index: int) -> Sample:
        return self.written


def cut(encoder, source, length: int) -> Document:
    return Documents(source, encoder, length, too_long="truncate").document(0)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 80))
def test_a_cut_sample_is_how_it_begins_with_whole_images(encoder, index, length):
    sample = make_task(0, index, "train", ALL_KINDS).sample
    whole = encoder.encode(sample)
    part = whole.cut(length)
    assert len(part) <= length and part.was_cut
    assert part.token_ids == whole.token_ids[: len(part)]
    assert part.supervised == whole.supervised[: len(part)]
    kept = len(part.spans)
    assert part.spans == whole.spans[:kept] and part.images == whole.images[:kept]
    assert part.is_target == whole.is_target[:kept]
    assert all(end < len(part) for _, end in part.spans)  # with its end token
    # Only for an image is more left out than must be.
    assert len(part) == min(length, len(whole)) or len(part) == whole.spans[kept][0] - 1
    pack_row([part], length, 0)


def test_an_image_that_does_not_fit_goes_as_a_whole(encoder):
    source = Same("Draw.", "Here: <image>")
    whole = encoder.encode(source.written)
    [(start, end)] = whole.spans
    for length in range(start, end + 1):
        part = cut(encoder, source, length)
        assert len(part) == start - 1 and not part.spans and not part.images
    assert len(cut(encoder, source, end + 1).images) == 1


def test_a_sample_whose_response_lies_beyond_the_row_stays_a_skip(encoder):
    source = Same("word " * 50, "yes")
    with pytest.raises(SampleError, match="sample long: .* tokens, a row holds 40") as caught:
        cut(encoder, source, 40)
    assert caught.value.cause == "longer than a row"
    with pytest.raises(SampleError, match="a row holds 40"):
        Documents(Same("hi", "word " * 50), encoder, 40).document(0)  # as asked by default


def test_the_report_counts_what_is_cut(encoder):
    report = validate_part("part", Same("hi", "word " * 50), encoder, 40, too_long="truncate")
    assert "cut: 3 longer than a row of 40" in report.text()
    assert report.bad_share == 0 and report.lengths == [40] * 3
    short = validate_part("part", ToyScenes(0, ALL_KINDS, 4), encoder, 200, too_long="truncate")
    assert "cut:" not in short.text()


def test_a_run_of_conversations_without_a_response_is_an_error(encoder):
    stream = RowStream(Documents(Same("Hello?"), encoder, 64), 0)
    with pytest.raises(UserError, match="no usable sample .*no response.*sample long"):
        next(stream)
    assert stream.skips.counts["no response"] == 6
    report = validate_part("part", Same("Hello?"), encoder, 64)
    assert "bad: 3 no response" in report.text() and report.bad_share == 1
