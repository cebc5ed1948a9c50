"""Rows of a step do not depend on how many processes share them, nor on who prepares them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.documents import Documents
from metamorph.data.lanes import Lanes
from metamorph.data.packing import RowStream
from metamorph.data.skips import Skips, check_skip_limit
from metamorph.data.toy.source import ToyScenes
from metamorph.data.toy.tasks import KINDS
from metamorph.errors import SampleError, UserError
from metamorph.pixels import Square

PAD, ROWS = 1, 4


class SomeCorrupt(ToyScenes):
    """Toy scenes of which one in ten cannot be used."""

    def sample(self, index: int) -> Sample:
        if index % 10 == 3:
            raise SampleError("corrupt image", f"sample {index} is broken")
        return super().sample(index)


@pytest.fixture
def documents(encoder) -> Documents:
    source = SomeCorrupt(0, dict.fromkeys(KINDS, 1.0), 0)
    return Documents(source, encoder, row_length=300, square=Square(32))


def world(documents, size: int, **options) -> list[Lanes]:
    return [Lanes(documents, PAD, ROWS, rank, size, **options) for rank in range(size)]


def step(processes: list[Lanes]) -> list:
    """The rows of a step of all processes, in the order of their lanes."""
    rows = [None] * ROWS
    for rank, lanes in enumerate(processes):
        rows[rank :: len(processes)] = lanes.next_rows()
    return rows


def saved(processes: list[Lanes]) -> dict[str, dict]:
    """As a checkpoint keeps it: the states of all lanes, through JSON."""
    states = {lane: s for lanes in processes for lane, s in lanes.state_dict().items()}
    return json.loads(json.dumps(states))


def same(one, other) -> bool:
    return (
        one.sample_ids == other.sample_ids
        and torch.equal(one.token_ids, other.token_ids)
        and [i.tobytes() for i in one.images] == [i.tobytes() for i in other.images]
    )


def test_2_then_4_then_1_processes_continue_the_same_order(documents):
    whole = world(documents, 1)
    expected = [step(whole) for _ in range(9)]
    found, state = [], None
    for size in (2, 4, 1):
        processes = world(documents, size)
        if state is not None:
            for lanes in processes:
                lanes.load_state_dict(state)
        found += [step(processes) for _ in range(3)]
        state = saved(processes)
    for rows, others in zip(expected, found, strict=True):
        assert all(map(same, rows, others))
    # What was skipped is known in full, whoever skipped it.
    assert whole[0].skips().counts == processes[0].skips().counts
    assert whole[0].skips().counts["corrupt image"] > 5


def test_one_lane_is_the_plain_stream(documents):
    stream, lanes = RowStream(documents, PAD), Lanes(documents, PAD, 1)
    for _ in range(5):
        assert same(next(stream), lanes.next_rows()[0])


def test_lanes_share_out_all_samples(documents):
    [lanes] = world(documents, 1)
    taken = []
    for _ in range(6):
        for number, row in enumerate(lanes.next_rows()):
            indices = [int(name.split("-")[3]) for name in row.sample_ids]
            assert {index % ROWS for index in indices} == {number}
            taken += indices
    assert len(set(taken)) == len(taken)
    state = lanes.state_dict()
    for lane, stream in state.items():
        waiting = set(stream["waiting"])
        passed = range(int(lane), stream["next_index"], ROWS)
        lost = {i for i in passed if i not in taken and i not in waiting}
        assert all(index % 10 == 3 for index in lost)


def test_processes_that_cannot_share_rows_evenly_are_refused(documents):
    with pytest.raises(UserError, match="rows_per_step: 4 cannot be shared evenly by 3 processes"):
        Lanes(documents, PAD, ROWS, rank=0, world_size=3)


def test_a_checkpoint_of_other_lanes_is_refused(documents):
    with pytest.raises(UserError, match="no state of data lane 2"):
        Lanes(documents, PAD, ROWS).load_state_dict(Lanes(documents, PAD, 2).state_dict())


def test_images_are_squashed_as_the_encoder_would(documents):
    rows = Lanes(documents, PAD, 1).next_rows()
    assert {image.size for row in rows for image in row.images} == {(32, 32)}


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 60), size=st.sampled_from([1, 2, 4]))
def test_lanes_with_an_end_pack_every_sample_before_it_once(encoder, samples, size):
    """However many processes share them; lanes that have ended give padding."""
    source = SomeCorrupt(0, dict.fromkeys(KINDS, 1.0), 0)
    documents = Documents(source, encoder, row_length=300, square=Square(32))
    processes, names = world(documents, size, samples=samples), []
    while sum(lanes.used() for lanes in processes) < samples:
        rows = step(processes)
        names += [name for row in rows for name in row.sample_ids]
    usable = [index for index in range(samples) if index % 10 != 3]
    assert sorted(int(name.split("-")[3]) for name in names) == usable
    padding = step(processes)
    assert all(row.used == 0 and row.document_lengths == (300,) for row in padding)
    assert sum(lanes.used() for lanes in processes) == samples


def test_waiting_for_data_is_timed(documents):
    lanes = Lanes(documents, PAD, 1)
    assert lanes.wait_seconds == 0
    lanes.next_rows()
    once = lanes.wait_seconds
    lanes.next_rows()
    assert 0 < once < lanes.wait_seconds


class ManyCorrupt(SomeCorrupt):
    def sample(self, index: int) -> Sample:
        if index % 4 == 1:
            raise SampleError("corrupt image", f"sample {index} is broken")
        if index % 50 == 2:
            raise SampleError("missing image", f"sample {index} is gone")
        return Sample(str(index), (Turn(USER, "hello"), Turn(ASSISTANT, "hi")))


def test_too_many_unusable_samples_are_told_with_their_causes(encoder):
    documents = Documents(ManyCorrupt(0, {}, 0), encoder, row_length=300)
    lanes = Lanes(documents, PAD, 2)
    few = {"tried": 99, "skipped": {"corrupt image": 99}, "examples": {"corrupt image": "x"}}
    check_skip_limit([Skips.of(few)], limit=0.0)  # they say nothing yet
    while lanes.skips().tried < 200:
        lanes.next_rows()
    check_skip_limit([lanes.skips()], limit=0.4)
    with pytest.raises(UserError) as caught:
        check_skip_limit([lanes.skips()], limit=0.2)
    message = str(caught.value)
    assert "data.skip_limit" in message and "more than 20%" in message
    assert "corrupt image (first: sample 1 is broken)" in message
    assert "missing image (first: sample 2 is gone)" in message


def wait_until_ignoring(pid: int, number: int) -> None:
    """A process that only just starts is none that prepares samples yet."""
    for _ in range(600):
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        if ignored & 1 << (number - 1):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} does not ignore signal {number}")


@pytest.mark.slow
def test_rows_prepared_by_other_processes_are_the_same(documents):
    inline = Lanes(documents, PAD, 2)
    ahead = Lanes(documents, PAD, 2, workers=2)
    try:
        for _ in range(3):
            assert all(map(same, inline.next_rows(), ahead.next_rows()))
        # Ctrl-C reaches every process of a terminal; the run decides when these end.
        for pid in ahead.ahead.pool._processes:
            for number in (signal.SIGINT, signal.SIGTERM):
                wait_until_ignoring(pid, number)
                os.kill(pid, number)
        # Going back drops what was prepared ahead, and nothing else.
        state = json.loads(json.dumps(inline.state_dict()))
        ahead.next_rows()
        ahead.load_state_dict(state)
        for _ in range(3):
            assert all(map(same, inline.next_rows(), ahead.next_rows()))
        assert inline.state_dict() == ahead.state_dict()
        assert ahead.skips().counts["corrupt image"] > 0
    finally:
        ahead.close()


DOCUMENTS = """
from metamorph.data.conversation import ChatEncoder
from metamorph.data.documents import Documents
from metamorph.data.lanes import Lanes
from metamorph.data.toy.source import ToyScenes
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.model.opening import add_image_tokens

if __name__ == "__main__":
    tokenizer = build_toy_tokenizer()
    add_image_tokens(tokenizer)
    documents = Documents(ToyScenes(0, {}, 0), ChatEncoder(tokenizer, 4), 300)
    lanes = Lanes(documents, 1, 1, workers=1)
    lanes.next_rows()
    print(*lanes.ahead.pool._processes, flush=True)
    input()
"""
PICTURES = """
from metamorph.data.pictures import PictureLanes, Pictures
from metamorph.data.toy.source import ToyScenes
from metamorph.pixels import Square

if __name__ == "__main__":
    pictures = Pictures(ToyScenes(0, {"draw": 1.0}, 0), Square(8), Square(8))
    lanes = PictureLanes(pictures, 1, workers=1)
    lanes.next_pictures()
    print(*lanes.ahead.pool._processes, flush=True)
    input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [DOCUMENTS, PICTURES], ids=["documents", "pictures"])
def test_processes_end_with_a_run_that_is_killed(tmp_path, program):
    script = tmp_path / "run.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    pid = int(run.stdout.readline())
    run.kill()
    try:
        run.communicate(timeout=10)  # until the last process that holds its output has ended
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the process outlived its run by 10 s")
