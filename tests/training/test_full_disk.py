"""A disk that takes nothing more ends a run in a line and keeps its last checkpoint, or, if asked,
does not end it; whatever writes, and whoever says so.
"""

import contextlib
import errno
import io
import os
import re
import resource
import time
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from PIL import Image
from safetensors import SafetensorError

from metamorph.cli.command import main
from metamorph.config.reading import save_config
from metamorph.data.lanes import Lanes
from metamorph.disk import no_place
from metamorph.monitor.metrics_file import MetricsFile, read_metrics
from metamorph.monitor.trackers import TensorBoard
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint
from tests.processes import CONTEXT, run_processes
from tests.tiny_run import tiny_config
from tests.training.test_checkpoint import trained

RETRY = ["--training.on_full_disk", "retry"]


@pytest.fixture
def config_file(folder) -> str:
    config = tiny_config(folder, "instruct", steps=6, rows_per_step=2)
    config.training.checkpoint_every = 2
    save_config(config, folder / "run.yaml")
    return str(folder / "run.yaml")


def full_between(first: int, last: int, config_file: str, options: list[str], queue=None):
    """Exit code and what was said of a run during which no file may grow beyond 16 kB, from one
    step to another: a disk that is full, as far as a process without rights can make one."""
    next_rows, calls = Lanes.next_rows, []
    checkpoints = Path(config_file).parent / "instruct" / "checkpoints"

    def limited(self):
        calls.append(None)
        while len(calls) == first > 2 and not list(checkpoints.glob("step-*")):
            time.sleep(0.01)  # the one before is written in the background
        if len(calls) in (first, last + 1):
            most = 2**14 if len(calls) == first else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        return next_rows(self)

    Lanes.next_rows = limited
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["train", config_file, *options])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found = code, [line for line in re.split("[\r\n]", said.getvalue()) if "cannot write" in line]
    assert "Traceback" not in said.getvalue()
    if queue is None:
        return found
    queue.put(found)


def run_with(*arguments) -> tuple[int, list[str]]:
    queue = CONTEXT.Queue()
    process = CONTEXT.Process(target=full_between, args=(*arguments, queue))
    process.start()
    found = queue.get(timeout=100)
    process.join()
    return found


def test_a_full_disk_ends_a_run_in_a_line_and_keeps_its_checkpoint(folder, config_file):
    code, said = run_with(3, 9, config_file, [])
    assert code == 1 and len(said) == 1
    run = folder / "instruct"
    kept = run / "checkpoints" / "step-000002"
    assert "File too large" in said[0]
    assert f"{kept} is kept: make room and go on with the same command and --resume" in said[0]
    assert [path for path in (run / "checkpoints").iterdir()] == [kept]
    assert main(["train", config_file, "--resume"]) == 0
    assert latest_checkpoint(run).name == "step-000006"
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_and_saves_again_if_asked(folder, config_file):
    code, said = run_with(3, 5, config_file, RETRY)
    assert code == 0 and len(said) == 1
    assert said[0].endswith("__0_0.distcp: File too large; trying again later")
    steps = sorted(path.name for path in (folder / "instruct" / "checkpoints").iterdir())
    assert steps == ["step-000002", "step-000006"]
    code, said = run_with(1, 9, config_file, [*RETRY, "--overwrite"])  # it never finds room
    assert code == 1 and said[-1].endswith("the run has no checkpoint yet")


def test_all_processes_end_by_the_same_line(folder, config_file):
    found = run_processes(2, full_between, 3, 9, config_file, [])
    assert found[0] == found[1] and found[0][0] == 1 and len(found[0][1]) == 1


def full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_words(*arguments, **keywords):
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


def read_only(*arguments, **keywords):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/mnt/runs/x")


@pytest.mark.parametrize(
    ("writer", "refusal", "problem"),
    [
        ("metamorph.training.run_folder.save_config", read_only, "/mnt/runs/x: Read-only file sys"),
        ("metamorph.lock.json.dump", full, "instruct: No space left on device; .* no checkpoint"),
        ("metamorph.monitor.metrics_file.write_text", full, "No space left on device"),
        ("metamorph.monitor.metrics_file.MetricsFile.write", full, "No space left on device"),
        ("metamorph.disk.write_text", full, "No space left on device"),
        ("metamorph.training.checkpoint_tensors._HashingStream.write", full, "No space left"),
        ("metamorph.model.weights.save_file", full_in_words, "step-000006 is kept: make room"),
        ("metamorph.model.unified.write_tokenizer", full, "step-000006 is kept: make room"),
    ],
)
def test_every_writer_of_a_run_is_told_in_a_line(
    folder, config_file, monkeypatch, capsys, writer, refusal, problem
):
    with monkeypatch.context() as patch:
        patch.setattr(writer, refusal)
        assert main(["train", config_file]) == 1
    lines = [line for line in capsys.readouterr().err.split("\n") if "metamorph: " in line]
    assert len(lines) == 1 and re.search(problem, lines[0])
    option = "--resume" if latest_checkpoint(folder / "instruct") else "--overwrite"
    assert main(["train", config_file, option]) == 0


def test_a_failed_checkpoint_gives_its_room_back_and_is_known_at_once(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, *trained(), {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(dcp.FileSystemWriter, "write_data", full)
            checkpoints.save(2, *trained(), {})
            with pytest.raises(OSError, match="No space left"):
                checkpoints.pending.result()
            assert checkpoints.has_failed()
            with pytest.raises(OSError, match="No space left"):
                checkpoints.wait()
        assert not checkpoints.has_failed()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
        checkpoints.save(3, *trained(), {})
    assert latest_checkpoint(tmp_path).name == "step-000003"


def test_lines_that_found_no_room_come_with_the_next_one(tmp_path, monkeypatch):
    metrics = MetricsFile(tmp_path, 0)
    metrics.write(step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (14, before[1]))  # amid the second line
    try:
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                metrics.write(step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    metrics.write(step=4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_tensorboard_goes_on_in_another_file(tmp_path, monkeypatch, capfd):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer.record_writer import RecordWriter

    tracker = TensorBoard(tmp_path, 0)
    tracker.write(1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            tracker.write(2, {"loss": 2.0})
    tracker.show(3, "sheet", Image.new("RGB", (4, 4)))
    tracker.write(3, {"loss": 3.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 3]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (OSError(errno.EROFS, "read-only"), errno.EROFS),
        (OSError(errno.ENOENT, "gone"), None),
        (PermissionError(errno.EACCES, "not yours"), None),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (Exception("Read-only file system (os error 30)"), errno.EROFS),
        (Exception("Permission denied (os error 13)"), None),
        (RuntimeError("PytorchStreamWriter failed writing file"), None),
    ],
)
def test_what_means_that_there_is_no_place(error, found):
    assert getattr(no_place(error), "errno", None) == found
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("cannot save") from cause
    except RuntimeError as wrapped:
        assert getattr(no_place(wrapped), "errno", None) == found
