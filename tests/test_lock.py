"""A folder is one process's at a time, and nobody's once that process has ended, however it did."""

import json
import os
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metamorph.errors import UserError
from metamorph.lock import Owner, locked
from tests.processes import CONTEXT


def in_use(folder: Path) -> str | None:
    """Why the folder cannot be had; None if it can."""
    try:
        with locked(folder):
            return None
    except UserError as error:
        return str(error)


def leave(folder: Path, owner: Owner) -> None:
    (folder / "run.lock").write_text(json.dumps(asdict(owner)))


def die_with_lock(folder: Path) -> None:
    with locked(folder):
        os._exit(9)


def test_a_folder_is_refused_while_its_process_lives_and_free_afterwards(tmp_path):
    with locked(tmp_path):
        message = in_use(tmp_path)
        assert f"{tmp_path} is in use by process {os.getpid()} on " in message
        assert "wait until that run ends, or give another folder" in message
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    assert in_use(tmp_path) is None


def test_a_lock_outlives_its_process_only_until_somebody_looks(tmp_path):
    process = CONTEXT.Process(target=die_with_lock, args=(tmp_path,))
    process.start()
    process.join()
    assert (tmp_path / "run.lock").exists()
    assert in_use(tmp_path) is None


NOW = Owner.current()
LONG_AGO = (datetime.now(UTC) - timedelta(days=3, seconds=9)).isoformat()


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        (replace(NOW), "in use by process"),
        (replace(NOW, started="7"), None),  # another process has its number now
        (replace(NOW, pid=2**22 + 1), None),  # none can have it
        (replace(NOW, boot="before", pid=1), None),  # the machine started anew
        (replace(NOW, numbering="pid:[7]"), "cannot be seen from"),  # another container
        (replace(NOW, host="elsewhere", since=LONG_AGO), "as of 3 days, 0:.* ago, which"),
        (replace(NOW, host="elsewhere", since="9999-01-01T00:00:00+00:00"), "as of 0:00:00 ago"),
        (replace(NOW, host="elsewhere", boot="other"), "if that run has ended, remove .*/run.lock"),
    ],
)
def test_what_can_be_seen_of_an_owner_decides(tmp_path, owner, reason):
    leave(tmp_path, owner)
    if reason is None:
        assert in_use(tmp_path) is None
    else:
        with pytest.raises(UserError, match=reason), locked(tmp_path):
            pass
        assert (tmp_path / "run.lock").exists()


@pytest.mark.parametrize(("job", "restarts", "free"), [("7", "1", 1), ("7", "0", 0), ("8", "1", 0)])
def test_a_job_that_slurm_began_anew_elsewhere_goes_on(tmp_path, monkeypatch, job, restarts, free):
    leave(tmp_path, replace(NOW, host="elsewhere", job="7", restarts=0))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    assert (in_use(tmp_path) is None) == free


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 9999, json.dumps(asdict(NOW))[:-1], '{"pid": 1}']
    + [json.dumps(asdict(NOW) | change) for change in ({"pid": "1"}, {"pid": -1}, {"since": "?"})],
)
def test_half_a_lock_is_of_a_process_that_died_over_it(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    assert in_use(tmp_path) is None
    (tmp_path / "run.lock").write_bytes(b"\xff\xfe" + text.encode())
    assert in_use(tmp_path) is None


def test_a_lock_of_somebody_else_is_left_alone(tmp_path):
    with locked(tmp_path):
        (tmp_path / "run.lock").unlink()
        leave(tmp_path, replace(NOW, host="elsewhere"))
    assert (tmp_path / "run.lock").exists()
    (tmp_path / "run.lock").unlink()
    with locked(tmp_path):
        (tmp_path / "run.lock").unlink()  # nothing is left to give back


def start_together(folder: Path, barrier, results) -> None:
    for number in range(20):
        leave(folder / str(number), replace(NOW, pid=2**22 + 1))  # what all of them may take over
        barrier.wait()
        try:
            with locked(folder / str(number)):
                barrier.wait()
                results.put(number)
        except UserError:
            barrier.wait()


def test_of_many_that_start_together_one_goes_on(tmp_path):
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    barrier, results = CONTEXT.Barrier(4), CONTEXT.Queue()
    arguments = (tmp_path, barrier, results)
    processes = [CONTEXT.Process(target=start_together, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    winners = [results.get(timeout=60) for _ in range(20)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(winners) == list(range(20)) and results.empty()
