"""Packed rows: every index is right, nothing is lost, order and resume are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.documents import Documents
from metamorph.data.packing import RowStream, pack_row
from metamorph.data.toy.source import ToyScenes
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.errors import SampleError, UserError

ALL_KINDS = dict.fromkeys(KINDS, 1.0)
PAD = 1


def toy_stream(encoder, row_length=400) -> RowStream:
    return RowStream(Documents(ToyScenes(0, ALL_KINDS, 0), encoder, row_length), PAD)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6), st.integers(0, 40))
def test_targets_are_what_the_next_position_holds(encoder, indices, padding):
    documents = [encoder.encode(make_task(0, i, "train", ALL_KINDS).sample) for i in indices]
    length = sum(map(len, documents)) + padding
    row = pack_row(documents, length, PAD)

    assert len(row.token_ids) == len(row.positions) == sum(row.document_lengths) == length
    assert row.used == length - padding
    # Positions restart in every document.
    expected = torch.cat([torch.arange(n) for n in row.document_lengths])
    assert torch.equal(row.positions, expected)
    # A text label is the token right after its row, and never a visual position or the padding.
    assert torch.equal(row.token_ids[row.text_rows + 1], row.text_labels)
    visual = set(row.visual_positions.tolist())
    assert not visual & set((row.text_rows + 1).tolist())
    assert row.text_rows.numel() == 0 or row.text_rows.max() + 1 < row.used
    # A visual row is right before the position that holds its target.
    assert torch.equal(row.visual_positions[row.visual_targets], row.visual_rows + 1)
    # Rows and targets of one image stay in one document.
    starts = torch.tensor(row.document_lengths).cumsum(0)
    document_of = torch.bucketize(torch.arange(length), starts, right=True)
    assert torch.equal(document_of[row.visual_rows], document_of[row.visual_rows + 1])
    assert torch.equal(document_of[row.text_rows], document_of[row.text_rows + 1])


def test_only_response_images_are_targets(encoder):
    edit = make_task(0, 0, "train", {"edit": 1.0}).sample
    row = pack_row([encoder.encode(edit)], 64, PAD)
    tokens = encoder.tokens_per_image
    assert row.visual_positions.numel() == 2 * tokens
    assert row.visual_targets.tolist() == list(range(tokens, 2 * tokens))
    first = row.visual_rows[0]
    assert row.token_ids[first] == encoder.image_start  # <image_start> predicts v0
    last = row.visual_rows[-1] + 1
    assert row.text_labels[row.text_rows == last] == encoder.image_end  # last v predicts the end


def test_rows_are_full_and_keep_every_document(encoder):
    stream = toy_stream(encoder)
    rows = [next(stream) for _ in range(30)]
    assert sum(row.used for row in rows) / (30 * 400) > 0.95
    seen = [int(sample.split("-")[3]) for row in rows for sample in row.sample_ids]
    waiting = [index for index, _ in stream.waiting]
    assert sorted(seen + waiting) == list(range(stream.next_index))


def test_a_stream_resumes_with_the_same_rows(encoder):
    stream = toy_stream(encoder)
    for _ in range(7):
        next(stream)
    other = toy_stream(encoder)
    other.load_state_dict(stream.state_dict())
    for _ in range(5):
        one, two = next(stream), next(other)
        assert one.sample_ids == two.sample_ids
        assert torch.equal(one.token_ids, two.token_ids)


class SomeBad:
    """Every third sample is too long for a row, every fifth is broken."""

    def __len__(self) -> int:
        return 30

    def sample(self, index: int) -> Sample:
        if index % 5 == 0:
            raise SampleError("missing image", f"sample {index} has no image")
        text = "word " * (500 if index % 3 == 0 else 5)
        return Sample(str(index), (Turn(USER, text), Turn(ASSISTANT, "ok")))


def test_unusable_samples_are_skipped_and_counted_by_cause(encoder):
    stream = RowStream(Documents(SomeBad(), encoder, 200), PAD)
    names = [name for _ in range(2) for name in next(stream).sample_ids]
    assert all(int(name) % 3 and int(name) % 5 for name in names)
    consumed = range(stream.next_index)
    assert stream.skips.counts["missing image"] == sum(i % 5 == 0 for i in consumed)
    assert stream.skips.counts["longer than a row"] == sum(
        i % 5 != 0 and i % 3 == 0 for i in consumed
    )
    assert "a row holds 200" in stream.skips.examples["longer than a row"]


def test_a_source_without_any_usable_sample_is_an_error(encoder):
    class AllBad(SomeBad):
        def sample(self, index):
            raise SampleError("missing image", "gone")

    with pytest.raises(UserError, match="no usable sample.*missing image.*gone"):
        next(RowStream(Documents(AllBad(), encoder, 200), PAD))


def test_documents_that_do_not_fit_are_refused(encoder):
    document = encoder.encode(make_task(0, 0).sample)
    with pytest.raises(ValueError, match="do not fit"):
        pack_row([document], len(document) - 1, PAD)


def test_property_tests_repeat_themselves():
    assert settings.default.derandomize and settings.default.deadline is None
