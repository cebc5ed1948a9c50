"""What the data tools take: run files, mixtures, folders, and the keys of a run."""

import pytest

from metamorph.cli.command import main
from metamorph.cli.data_inputs import is_run_file

TOOLS = (["validate-data"], ["encode", "--output", "features"])


@pytest.mark.parametrize(
    "written",
    [
        {"stage": "instruct", "output": "runs/x"},
        {"stag": "instruct", "output": "runs/x", "data": {"path": "a.jsonl"}},  # misspelled
        {"model": {"language": "llama"}, "data": {"path": "a.jsonl"}},  # without a stage
        {"data": {"path": "a.jsonl", "row_length": 2048}},
        {"model": None, "seed": 3},
    ],
)
def test_a_run_file_is_one_even_where_it_is_wrong(written):
    assert is_run_file(written)


@pytest.mark.parametrize(
    "written",
    [
        {"qa": {"path": "a.jsonl"}, "pairs": {"pth": "typo.jsonl"}},
        {"training": {"path": "train.jsonl"}, "data": {"source": "toy_scenes", "weight": 2}},
        {"qa": None},
        ["a", "list"],
        None,
    ],
)
def test_all_else_is_taken_for_a_mixture(written):
    assert not is_run_file(written)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
def test_samples_are_no_run_file(tool, tmp_path, capsys):
    assert main([tool[0], str(tmp_path / "data.jsonl"), *tool[1:]]) == 2
    assert "data.jsonl: it holds samples itself, expected a run file" in capsys.readouterr().err


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("output: x\ndata: {path: a.jsonl}", [], "key 'stage' is missing"),
        ("qa: {path: a.jsonl}", ["--data.row_lenght", "9"], "the nearest is '--data.row_length'"),
        ("qa: {path: a.jsonl}", ["--monitr", "x"], "'--monitr'; the nearest is '--mo"),
        ("qa: {path: a.jsonl}", ["--training.steps", "9"], "steps: only metamorph train uses it"),
        ("qa: {path: a.jsonl}", ["--data.workers", "9"], "workers: only metamorph train uses it"),
        ("qa: {path: a.jsonl}", ["--data.shuffle", "9"], "key 'data.shuffle' got 9"),
        ("stage: decoder\noutput: x", ["--data.row_length", "9"], "stage decoder does not use it"),
    ],
)
def test_what_is_wrong_is_named(tool, text, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(text)
    command = [tool[0], "my.yaml", *tool[1:], *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder.batch_size", "9"], "--decoder.batch_size: only metamorph train uses it"),
        (["--verify", "--dtype", "int8"], "--dtype: --verify makes nothing, and does not use it"),
        (["--verify", "--device", "cuda:7"], "--device: --verify makes nothing"),
        (["--verify", "--shard-images", "9"], "--shard-images: --verify makes nothing"),
        (["--verify", "--data.max_pixels", "9"], "--data.max_pixels: --verify makes nothing"),
        (["--data.image_root", "images"], "data.image_root: source mixture does not use it"),
    ],
)
def test_what_encode_would_leave_out(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("qa: {path: a.jsonl}")
    assert main(["encode", "my.yaml", "--output", "features", *options]) == 2
    assert message in capsys.readouterr().err


def test_what_is_verified_is_that_of_data_that_are_there(tmp_path, capsys):
    assert main(["encode", str(tmp_path / "no.yaml"), "--output", "features", "--verify"]) == 2
    assert "no.yaml: cannot read the file: No such file" in capsys.readouterr().err
