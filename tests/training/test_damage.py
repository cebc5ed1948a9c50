"""What was saved is what is loaded: a checkpoint that is not is refused in one sentence that names
the file and what to go on from, and nothing else in a run folder keeps a good one from its resume.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamorph.errors import UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint, load_checkpoint
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import tiny_config
from tests.training.test_checkpoint import trained

FILES = ("__0_0.distcp", ".metadata", "state.json", "complete.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with checkpoints of three steps, whose weights are the step."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, *trained(step), {"note": step})
    return folder / "checkpoints"


@pytest.fixture
def checkpoints(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def refused(path: Path) -> str:
    """Why it is; weights and optimizer are then as before."""
    module, optimizer = trained(9.0)
    moments = optimizer.state[module.weight]["exp_avg"].clone()
    with pytest.raises(UserError) as error:
        load_checkpoint(path, module, optimizer)
    assert (module.weight == 9.0).all()
    assert torch.equal(optimizer.state[module.weight]["exp_avg"], moments)
    return str(error.value)


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_no_flipped_bit_gets_through(saved, name, place, bit):
    file = saved / "step-000003" / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= 1 << bit
    file.write_bytes(changed)
    try:
        assert "step-000003 is damaged: " in refused(file.parent)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "{} has "),
        (lambda file: file.write_bytes(file.read_bytes() + b"more"), "{} has "),
        (lambda file: file.write_bytes(b"?" + file.read_bytes()[1:]), "{} is not what was saved"),
        (Path.unlink, "{} is missing"),
    ],
)
def test_the_file_and_the_next_older_good_one_are_named(checkpoints, name, change, problem):
    change(checkpoints / "step-000003" / name)
    message = refused(checkpoints / "step-000003")
    assert f"step-000003 is damaged: {problem.format(name)}" in message
    assert message.endswith(f"the next older good one, {checkpoints / 'step-000002'}")
    change(checkpoints / "step-000002" / name)
    assert refused(checkpoints / "step-000003").endswith(str(checkpoints / "step-000001"))
    change(checkpoints / "step-000001" / name)
    assert refused(checkpoints / "step-000003").endswith("there is no older good one")


def test_a_checkpoint_without_its_marker_is_not_passed_over(checkpoints):
    newest = checkpoints / "step-000003"
    (newest / "complete.json").unlink()
    assert latest_checkpoint(checkpoints.parent) == newest
    assert refused(newest).endswith(
        "is damaged: complete.json is missing; remove it to go on from the next older good one, "
        f"{checkpoints / 'step-000002'}"
    )
    with Checkpoints(checkpoints.parent, keep=1) as written:
        written.save(4, *trained(), {})
    assert [path.name for path in checkpoints.iterdir()] == ["step-000004"]


@pytest.mark.parametrize(
    "marker",
    [
        "", "[]", "7", "{", "[" * 100_000, "{}",
        {"step": 2}, {"step": "3"}, {"sizes": {}, "sha256": {}}, {"sizes": None}, {"sha256": []},
        {"sizes": {"../a": 1, ".metadata": 1, "state.json": 1}}, {"sha256": None, "sizes": None},
        *({"sha256": dict.fromkeys(FILES[:3], pieces)} for pieces in (None, 7, "", [])),
    ],
)  # fmt: skip
def test_markers_that_are_none(checkpoints, marker):
    file = checkpoints / "step-000003" / "complete.json"
    if isinstance(marker, dict):
        marker = json.dumps(json.loads(file.read_text()) | marker)
    file.write_text(marker)
    assert "step-000003 is damaged: complete.json: " in refused(file.parent)


def test_a_large_file_is_checked_in_pieces(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("metamorph.disk.PIECE", 2**10)
    monkeypatch.setattr("metamorph.disk.BLOCK", 2**8)
    with Checkpoints(tmp_path, keep=9) as written:
        written.save(4, *trained(4.0), {})
    path = latest_checkpoint(tmp_path)
    assert len(json.loads((path / "complete.json").read_text())["sha256"]["__0_0.distcp"]) > 40
    module, optimizer = trained()
    load_checkpoint(path, module, optimizer)
    assert (module.weight == 4.0).all()
    with (path / "__0_0.distcp").open("r+b") as file:
        file.seek(5000)
        file.write(b"?")
    assert "__0_0.distcp is not what was saved" in refused(path)


def load_in_one_of_two(folder: Path) -> str:
    from metamorph.processes import process_group

    with process_group(torch.device("cpu")):
        return refused(latest_checkpoint(folder))


def test_processes_share_the_check_and_all_refuse(checkpoints):
    with (checkpoints / "step-000003" / "__0_0.distcp").open("r+b") as file:
        file.write(b"?")
    first, second = run_processes(2, load_in_one_of_two, checkpoints.parent)
    assert first == second and "__0_0.distcp is not what was saved" in first
    assert first.endswith("step-000002")


BESIDE = [
    "step-000003-backup", "step-000009.old", "step-3", "step-0000004", "step-", "step-\u0663",
    "step-1e9", "step--00001", "old", ".step-000009", "step-99999999999999999999999",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["copy", "link", "empty folder", "file"])
@pytest.mark.parametrize("name", BESIDE)
def test_names_beside_checkpoints_are_nothing_to_them(checkpoints, name, kind):
    beside, good = checkpoints / name, checkpoints / "step-000003"
    if kind == "copy":
        shutil.copytree(good, beside)
    elif kind == "link":
        beside.symlink_to(good, target_is_directory=True)
    elif kind == "file":
        beside.write_text("mine")
    else:
        beside.mkdir()
    assert latest_checkpoint(checkpoints.parent) == good
    with Checkpoints(checkpoints.parent, keep=1) as written:
        written.save(6, *trained(), {})
        written.save(7, *trained(), {})
    assert {path.name for path in checkpoints.iterdir()} == {"step-000007", name}


@pytest.mark.parametrize("kind", ["file", "link", "dead link", "folder"])
def test_a_checkpoint_takes_its_name_from_what_is_none(checkpoints, kind):
    taken = checkpoints / "step-000004"
    if kind == "file":
        taken.write_text("mine")
    elif kind == "folder":
        taken.mkdir()
    else:
        target = checkpoints / "step-000001" if kind == "link" else checkpoints / "gone"
        taken.symlink_to(target, target_is_directory=True)
    with Checkpoints(checkpoints.parent, keep=9) as written:
        written.save(4, *trained(4.0), {})
    module, optimizer = trained()
    assert load_checkpoint(taken, module, optimizer)["step"] == 4
    assert (checkpoints / "step-000001" / "complete.json").exists()
    if kind == "file":
        assert (checkpoints / "step-000004.aside").read_text() == "mine"


def test_what_is_set_aside_replaces_nothing(checkpoints):
    for note in ("first", "second", "third"):
        shutil.rmtree(checkpoints / "step-000004", ignore_errors=True)
        (checkpoints / "step-000004").write_text(note)
        with Checkpoints(checkpoints.parent, keep=9) as written:
            written.save(4, *trained(), {})
    names = "step-000004.aside", "step-000004.aside-2", "step-000004.aside-3"
    assert [(checkpoints / name).read_text() for name in names] == ["first", "second", "third"]


def test_what_people_break_beside_a_checkpoint_never_blocks_its_resume(folder):
    config = tiny_config(folder, "align", steps=4)
    train(config)
    run = folder / "align"
    (run / "config.yaml").write_text("steps: [")
    lines = (run / "metrics.jsonl").read_text()
    broken = ["not json", "[1]", "7", "{}", '{"step": "4"}', "[" * 100_000, "\x00", '{"step": 1']
    for text in (*broken, "\n".join(broken)):
        (run / "metrics.jsonl").write_text(lines + text)
        assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]
    (run / "metrics.jsonl").write_bytes(lines.encode() + b"\xff\xfe\n")
    train(replace(config, resume=True))
    assert (run / "metrics.jsonl").read_text() == lines
    (run / "config.yaml").unlink()
    (run / "metrics.jsonl").unlink()
    for name in ("config.yaml", "metrics.jsonl"):
        (run / name).mkdir()
    train(replace(config, resume=True))
    assert "stage: align" in (run / "config.yaml").read_text()
    assert (run / "config.yaml.aside").is_dir() and (run / "metrics.jsonl").read_text() == ""
    with pytest.raises(UserError, match="seed is 1 now and was 0 when"):  # the checkpoint knows
        train(replace(config, resume=True, seed=1))
