"""No error while one sample is prepared ends a run: it is counted, under a name."""

import pickle
import struct
import zlib

import pytest
from PIL import Image

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.documents import Documents
from metamorph.data.pictures import Pictures, PictureStream
from metamorph.data.skips import located, skippable
from metamorph.errors import SampleError, Stopped, UserError
from metamorph.pixels import Square


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (ValueError("box: four numbers"), "malformed record", "box: four numbers"),
        (OverflowError("too large"), "malformed record", "OverflowError: too large"),
        (TypeError("no len()"), "malformed record", "TypeError: no len()"),
        (KeyError("value"), "malformed record", "KeyError: 'value'"),
        (RecursionError("deep"), "malformed record", "RecursionError: deep"),
        (OSError(5, "Input/output error"), "unexpected OSError", "Input/output error"),
        (MemoryError(), "unexpected MemoryError", "MemoryError"),
        (zlib.error("bad data"), "unexpected zlib.error", "zlib.error: bad data"),
        (struct.error("unpack"), "unexpected struct.error", "struct.error: unpack"),
        (RuntimeError("library"), "unexpected RuntimeError", "RuntimeError: library"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_error_of_any_type_is_a_counted_skip(error, cause, message):
    with pytest.raises(SampleError) as caught, located("data.jsonl:7"):
        raise error
    assert caught.value.cause == cause
    assert str(caught.value).startswith("data.jsonl:7: ") and message in str(caught.value)
    assert caught.value.__cause__ is not None


def test_what_the_encoder_has_against_a_sample_names_its_file_once(encoder):
    class One(Broken):
        def sample(self, index: int) -> Sample:
            return Sample("s", (Turn(USER, "hello" * 50),) * (index + 1), where="data.jsonl:7")

    for index, message in enumerate(
        ("data.jsonl:7: sample s: no turn is the assistant's", "data.jsonl:7: sample s: turn 1 is")
    ):
        with pytest.raises(SampleError, match=f"^{message}"):
            Documents(One(), encoder, 100).document(index)
    with pytest.raises(SampleError, match="^sample data.jsonl:7: no response$"), located("data.j"):
        raise SampleError("no response", "sample data.jsonl:7: no response")


def test_what_was_named_already_keeps_its_name():
    with pytest.raises(SampleError, match="^a.tar sample 3: no such image$") as caught:
        with located("a.tar sample 3"):
            raise SampleError("missing image", "no such image")
    assert caught.value.cause == "missing image"


@pytest.mark.parametrize("error", [UserError("no PyAV"), Stopped("saved"), KeyboardInterrupt()])
def test_what_concerns_the_run_ends_it(error):
    with pytest.raises(type(error)), located("a"):
        raise error


@pytest.mark.parametrize("mistake", [NameError, ImportError, AssertionError, NotImplementedError])
def test_mistakes_in_our_code_surface_where_it_is_tested_and_cost_no_run(mistake, monkeypatch):
    with pytest.raises(mistake), skippable():
        raise mistake("oops")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(SampleError, match=f"{mistake.__name__}: oops") as caught, skippable():
        raise mistake("oops")
    assert caught.value.cause == f"unexpected {mistake.__name__}"


class Broken:
    """A source, as a program may bring it, of which every second sample fails in some way."""

    def __len__(self) -> int:
        return 4

    def sample(self, index: int) -> Sample:
        if index % 4 == 1:
            raise OSError("disk on fire")
        turns = (Turn(USER, "<image>what?"), Turn(ASSISTANT, "red"))
        image = Image.new("RGB", (4, 4)) if index % 4 != 3 else FailingPicture()
        return Sample(f"s{index}", turns, (image,))


class FailingPicture:
    def open(self):
        raise OverflowError("too far")

    def key(self):
        raise OverflowError("too far")


def test_documents_and_pictures_of_any_source_keep_the_rule(encoder):
    documents = Documents(Broken(), encoder, 100)
    assert documents.document(0).sample_id == "s0"
    for index, message in ((1, "sample 1: OSError: disk on fire"), (3, "sample s3: OverflowError")):
        with pytest.raises(SampleError, match=message):
            documents.document(index)
    square = Square(4, Image.Resampling.BILINEAR, "squash")
    stream = PictureStream(Pictures(Broken(), square, square).sample, len(Broken()))
    assert [next(stream).pixels.shape for _ in range(3)] == [(4, 4, 3)] * 3
    assert stream.skips.counts == {"unexpected OSError": 1, "malformed record": 1}


def test_what_was_named_passes_between_processes():
    """As from those that prepare samples: `data.workers`."""
    with pytest.raises(SampleError) as caught, located("data.jsonl:7"):
        raise OSError("disk on fire")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.cause, str(copy)) == (caught.value.cause, str(caught.value))
