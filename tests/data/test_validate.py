"""The report on a run's data, and its exit code."""

import json

import pytest
from data_files import turns, write_lines
from PIL import Image

from metamorph.cli.command import main
from metamorph.data.toy.source import ToyScenes
from metamorph.data.validate import validate_part
from tests.tiny_run import write_language


def test_lengths_images_and_shares_are_those_of_the_documents(encoder):
    source = ToyScenes(0, {"edit": 1.0, "text": 1.0}, samples=40)
    report = validate_part("toy", source, encoder, row_length=400)
    documents = [encoder.encode(source.sample(i)) for i in range(40)]
    assert report.lengths == [len(document) for document in documents]
    assert report.images == [len(document.spans) for document in documents]
    assert report.visual_tokens == sum(len(d.spans) for d in documents) * encoder.tokens_per_image
    assert report.bad_share == 0 and report.longer == 0
    assert 0.9 < report.packing_efficiency() <= 1
    assert validate_part("toy", source, encoder, 400, samples=7).skips.tried == 7


def test_documents_longer_than_a_row_are_bad(encoder):
    source = ToyScenes(0, {"draw": 1.0}, samples=10)
    report = validate_part("toy", source, encoder, row_length=10)
    assert report.longer == 10 and report.bad_share == 1 and report.packing_efficiency() == 0
    assert "bad: 10 longer than a row of 10" in report.text()


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    good = {"image": "a.png", "conversations": turns("<image>what?", "red")}
    write_lines(tmp_path / "good.jsonl", *[good] * 8)
    write_lines(tmp_path / "bad.jsonl", *[good] * 6, good | {"image": "half.png"},
                good | {"image": "../a.png"})  # fmt: skip
    (tmp_path / "mixture.yaml").write_text("good: {path: good.jsonl}\nbad: {path: bad.jsonl}\n")
    write_language(tmp_path / "llama")
    return tmp_path


def test_a_mixture_file_alone(folder, capsys):
    command = ["validate-data", str(folder / "mixture.yaml"), "--model.language"]
    command += [str(folder / "llama"), "--model.grid", "2", "--data.row_length", "200"]
    assert main(command) == 1
    printed = capsys.readouterr()
    good, bad = printed.out.split("bad: 8 of 8")
    assert good.startswith("good: 8 of 8 samples looked at, 8 usable\n  tokens: min ")
    assert "images a sample: mean 1.00, max 1" in good and "rows of 200: " in good
    assert "6 usable" in bad
    assert "bad: 1 corrupt image (first: " in bad and "bad.jsonl:7" in bad
    assert "bad: 1 image outside its root (first: " in bad
    assert "more than 20% of bad are bad" in printed.err
    assert main([*command, "--samples", "6"]) in (0, 1)
    assert "6 of 8 samples looked at" in capsys.readouterr().out


def test_a_run_file_brings_tokenizer_row_length_and_limit(folder, capsys):
    run = {
        "stage": "instruct",
        "output": "runs/x",
        "model": {"language": str(folder / "llama"), "grid": 2},
        "data": {
            "source": "mixture", "path": str(folder / "mixture.yaml"), "row_length": 128,
            "skip_limit": 0.3,
        },
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(run))
    assert main(["validate-data", str(folder / "run.yaml")]) == 0
    assert "rows of 128: " in capsys.readouterr().out
    other = ["--data.source", "jsonl", "--data.path", str(folder / "bad.jsonl")]
    assert main(["validate-data", str(folder / "run.yaml"), *other, "--data.skip_limit", "0"]) == 1
    assert capsys.readouterr().out.startswith("data: 8 of 8 samples looked at, 6 usable\n")


def test_rows_are_no_longer_than_the_model_has_positions(folder, capsys):
    command = ["validate-data", str(folder / "mixture.yaml"), "--model.language"]
    command += [str(folder / "llama"), "--model.grid", "2", "--data.row_length", "8193"]
    assert main(command) == 2
    assert "data.row_length: 8193 tokens, but the model has positions" in capsys.readouterr().err


def test_a_mixture_file_needs_a_tokenizer(folder, capsys):
    assert main(["validate-data", str(folder / "mixture.yaml")]) == 2
    assert "model.language: nothing says whose tokens" in capsys.readouterr().err


def test_every_bad_sample_is_listed_on_request(folder, capsys):
    path = folder / "list.jsonl"
    command = ["validate-data", str(folder / "mixture.yaml"), "--bad", str(path)]
    command += ["--model.language", str(folder / "llama"), "--model.grid", "2"]
    for row_length, causes in (
        ("200", ["corrupt image", "image outside its root"]),
        ("2", ["longer than a row"] * 14 + ["corrupt image", "image outside its root"]),
    ):  # the second list replaces the first
        assert main([*command, "--data.row_length", row_length]) == 1
        listed = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted(line["cause"] for line in listed) == sorted(causes)
        broken = next(line for line in listed if line["cause"] == "corrupt image")
        assert broken["part"] == "bad" and "bad.jsonl:7" in broken["message"]
    path.write_text("my only copy\n")
    assert main(command) == 2
    assert "list.jsonl exists and is no list of bad samples" in capsys.readouterr().err
    assert path.read_text() == "my only copy\n"
    assert main([*command[:3], str(folder), *command[4:]]) == 2
    assert "is a folder, expected a file to write" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_only_pictures_count_for_a_decoder(folder, capsys, workers):
    """Neither a tokenizer nor words are asked for."""
    write_lines(folder / "alone.jsonl", {"image": "a.png"}, {"image": "half.png"}, {"image": []})
    run = {"stage": "decoder", "output": "x", "data": {"path": str(folder / "alone.jsonl")}}
    (folder / "decoder.yaml").write_text(json.dumps(run))
    command = ["validate-data", str(folder / "decoder.yaml"), "--workers", workers]
    assert main([*command, "--bad", str(folder / "list.jsonl")]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("data: 3 of 3 samples looked at, 2 usable\n  images a sample: ")
    assert "shorter side of an image, in pixels: min 10, median 10" in printed
    assert "bad: 1 corrupt image" in printed and "rows of" not in printed
    assert "half.png" in json.loads((folder / "list.jsonl").read_text())["message"]


def test_a_folder_of_pictures_is_data_as_it_stands(folder, capsys):
    (folder / "half.png").unlink()
    assert main(["validate-data", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("data: 1 of 1 samples looked at, 1 usable\n")
    assert main(["validate-data", str(folder / "llama")]) == 2
    assert "llama holds no picture" in capsys.readouterr().err
