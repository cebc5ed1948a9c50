"""Files that appear whole or not at all, and what is left where a process was killed."""

import os
import subprocess
import sys

from metamorph.disk import atomic_path, temporary_beside


def ended_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    gone = ended_process()
    left = tmp_path / f".a[1].json.{gone}.tmp"
    left.write_text("half")
    folder = tmp_path / f".tokenizer.{gone}.tmp"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("half")
    kept = [tmp_path / name for name in (f".a1.json.{gone}.tmp", f".a[1].json.{os.getppid()}.tmp")]
    for path in kept:  # of another file; of a process that lives
        path.write_text("half")
    with atomic_path(tmp_path / "a[1].json") as temporary:
        temporary.write_text("whole")
    temporary_beside(tmp_path / "tokenizer")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a[1].json", *kept])


def test_a_body_that_fails_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "a.json").write_text("before")
    try:
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise KeyError
    except KeyError:
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
