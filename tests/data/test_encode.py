"""Encoding: from which data, which bad samples are listed, and what the bar says meanwhile."""

import json

import pytest
from data_files import turns, write_lines
from PIL import Image

from metamorph.cli.command import main
from metamorph.config import DataConfig
from metamorph.data import encode as encoding
from metamorph.data.encode import Progress, encode
from metamorph.data.features import FeatureFolder
from metamorph.data.mixture import parts_of
from metamorph.data.opening import open_source
from metamorph.lock import locked
from metamorph.model.siglip import SiglipEncoder

GRID = 2


@pytest.fixture
def pictures(tmp_path):
    """A folder of seven pictures, one of them broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20, 10), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "6.png").write_text("no picture")
    return folder


def command(parts, folder, *options: str) -> list[str]:
    model = ["--model.vision", str(parts / "siglip"), "--model.grid", str(GRID)]
    output = ["--output", str(folder / "features"), "--device", "cpu"]
    return ["encode", *options, *model, *output]


def test_a_folder_is_encoded_and_its_bad_pictures_are_listed(parts, pictures, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    assert main(command(parts, tmp_path, str(pictures), "--bad", str(path))) == 0
    printed = capsys.readouterr().out
    assert "holds 6 images" in printed and "skipped 1 of 7 samples: corrupt image" in printed
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["cause"] == "corrupt image" and "6.png" in json.loads(line)["message"]


def test_words_are_not_asked_for_whatever_the_stage(parts, pictures, tmp_path, capsys):
    records = [
        {"image": "1.png"},
        {"image": "2.png", "conversations": turns("<image>what?", "red")},
    ]
    data = write_lines(pictures / "data.jsonl", *records)
    for stage in ("decoder", "instruct"):
        run = {"stage": stage, "output": "x", "data": {"path": str(data)}}
        (tmp_path / "my.yaml").write_text(json.dumps(run))
        assert main(command(parts, tmp_path, str(tmp_path / "my.yaml"))) == 0
        assert "holds 2 images" in capsys.readouterr().out


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, int, str]]:
    """What the bar shows while a folder is encoded: samples done, how many of them say something of
    the time that the rest will take, and the words behind."""
    states = []

    class Watched(Progress):
        def show(self, *arguments):
            super().show(*arguments)
            states.append((self.bar.n, self.bar.n - self.bar.initial, self.bar.postfix))

    monkeypatch.setattr(encoding, "Progress", Watched)
    return states


def test_the_bar_counts_what_is_done_and_starts_where_it_is(parts, pictures, tmp_path, seen):
    vision = SiglipEncoder.from_pretrained(parts / "siglip", GRID)
    config = DataConfig(source="pictures", path=str(pictures), shuffle=False)
    data = parts_of(open_source(config, 0, words=False))
    encode(data, vision, tmp_path / "f", "fp32", batch_size=4)
    assert [(done, words) for done, _, words in seen] == [
        (0, "0 images, 0 skipped"),
        (0, "0 images, 0 skipped"),
        (0, "0 images, 0 skipped"),
        (4, "4 images, 0 skipped"),  # a batch is encoded
        (4, "4 images, 0 skipped"),
        (4, "4 images, 0 skipped"),
        (5, "4 images, 1 skipped"),
        (7, "6 images, 1 skipped"),
    ]
    seen.clear()
    Image.new("RGB", (20, 10), "green").save(pictures / "7.png")
    data = parts_of(open_source(config, 0, words=False))
    index, _ = encode(data, vision, tmp_path / "f", "fp32", batch_size=4)
    assert seen[0] == (1, 0, "6 images, 0 skipped")  # known, and nothing of it was encoded now
    assert seen[-1] == (8, 1, "7 images, 1 skipped")
    assert index.rows == 7


def test_the_bar_is_shown_to_its_end_also_where_all_was_known(parts, pictures, tmp_path, capsys):
    whole = command(parts, tmp_path, str(pictures))
    for _ in range(2):
        assert main(whole) == 0
        assert "7/7" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_encoded_is_kept_when_a_run_is_interrupted(parts, pictures, tmp_path, monkeypatch):
    vision = SiglipEncoder.from_pretrained(parts / "siglip", GRID)
    config = DataConfig(source="pictures", path=str(pictures), shuffle=False)
    data = parts_of(open_source(config, 0, words=False))
    forward, calls = SiglipEncoder.forward, []

    def interrupted(self, pixels):
        calls.append(pixels)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, pixels)

    monkeypatch.setattr(SiglipEncoder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(data, vision, tmp_path / "f", "fp32", batch_size=2)
    assert len(FeatureFolder(tmp_path / "f").all_keys()) == 4  # of a shard that would hold 4096


def test_a_second_command_into_the_same_folder_is_refused(parts, pictures, tmp_path, capsys):
    features = tmp_path / "features"
    features.mkdir()
    with locked(features):
        assert main(command(parts, tmp_path, str(pictures))) == 2
    error = capsys.readouterr().err
    assert f"metamorph: --output: {features} is in use by process" in error
    assert main(command(parts, tmp_path, str(pictures))) == 0
    assert not (features / "run.lock").exists()
