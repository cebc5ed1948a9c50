"""Reading and writing folders of weights."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.disk import atomic_path
from metamorph.errors import UserError
from metamorph.model import weights
from metamorph.model.weights import (
    check_tensors,
    read_json,
    read_tensors,
    read_tokenizer,
    write_json,
    write_tensors,
)


def example() -> dict[str, torch.Tensor]:
    return {f"part.{i}": torch.randn(i + 1, 4) for i in range(5)}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_one_file_round_trips(tmp_path):
    tensors = example()
    write_tensors(tmp_path, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(read_tensors(tmp_path), tensors)


def test_shards_round_trip_and_respect_the_limit(tmp_path):
    tensors = example()
    write_tensors(tmp_path, tensors, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards[0] == "model-00001-of-00003.safetensors"
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors.values())
    assert same(read_tensors(tmp_path), tensors)


@pytest.mark.parametrize(("first", "second"), [(100, 10_000), (10_000, 100), (40, 100)])
def test_a_second_write_leaves_nothing_of_the_first(tmp_path, first, second):
    write_tensors(tmp_path, example(), shard_bytes=first)
    tensors = example()
    write_tensors(tmp_path, tensors, shard_bytes=second)
    write_tensors(tmp_path / "fresh", tensors, shard_bytes=second)
    names = {path.name for path in tmp_path.iterdir()} - {"fresh"}
    assert names == {path.name for path in (tmp_path / "fresh").iterdir()}
    assert same(read_tensors(tmp_path), tensors)


def test_files_of_the_user_beside_the_model_stay(tmp_path):
    for name in (
        "model-backup.safetensors",
        "model_ema.safetensors",
        "model-00001-of-2.safetensors",
    ):
        (tmp_path / name).write_bytes(b"mine")
    write_tensors(tmp_path, example(), shard_bytes=1)
    write_tensors(tmp_path, example())
    assert {path.name for path in tmp_path.iterdir()} == {
        "model-backup.safetensors", "model_ema.safetensors", "model-00001-of-2.safetensors",
        "model.safetensors",
    }  # fmt: skip


def test_weights_can_be_read_by_whom_other_files_can(tmp_path):
    write_json(tmp_path / "config.json", {})
    write_tensors(tmp_path, example())
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        Path(temporary).write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_broken_json_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json: .*JSON"):
        read_json(tmp_path / "config.json")


def test_absent_files_are_named(tmp_path):
    with pytest.raises(UserError, match="config.json: no such file"):
        read_json(tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="model.safetensors: no such file, .*safetensors only"):
        read_tensors(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write_tensors(tmp_path, example())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        read_tensors(tmp_path)


def test_damaged_indices_are_named(tmp_path):
    write_tensors(tmp_path, example(), shard_bytes=100)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="do not hold the tensor 'ghost'"):
        read_tensors(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="'weight_map'"):
        read_tensors(tmp_path)
    path.write_text(json.dumps({"weight_map": {"a": "model-00009-of-00009.safetensors"}}))
    with pytest.raises(UserError, match="model-00009-of-00009.safetensors: no such file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/elsewhere/model.safetensors", "a/b.safetensors", "..", "", "a\0", 5],
)
def test_shards_lie_beside_their_index(tmp_path, name):
    (tmp_path / "inside").mkdir()
    write_tensors(tmp_path, {"a": torch.zeros(1)})
    index = {"weight_map": {"a": name}}
    write_json(tmp_path / "inside" / "model.safetensors.index.json", index)
    with pytest.raises(UserError, match="index.json: weight_map names .* in the same folder"):
        read_tensors(tmp_path / "inside")


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="model.safetensors: cannot write .*No space left"):
        write_tensors(tmp_path, example())


@pytest.mark.parametrize("text", ["{", "{}", '{"model": 5}', "\0"])
def test_a_corrupt_tokenizer_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="tokenizer.json: not readable as a tokenizer") as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_of_a_tokenizer_are_tried(tmp_path):
    build_toy_tokenizer().save_pretrained(tmp_path)
    read_tokenizer(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": "x"}))
    with pytest.raises(UserError, match="not readable as a tokenizer: a field is missing or"):
        read_tokenizer(tmp_path)


def test_differences_between_file_and_model_are_named(tmp_path):
    tensors = example()
    check_tensors(tensors, tensors, tmp_path)
    without = {name: tensor for name, tensor in tensors.items() if name != "part.3"}
    with pytest.raises(UserError, match="'part.3' is missing"):
        check_tensors(tensors, without, tmp_path)
    with pytest.raises(UserError, match=r"'part.3' of shape \(4, 4\) belongs to no part"):
        check_tensors(without, tensors, tmp_path)
    with pytest.raises(UserError, match=r"'part.3' has shape \(2, 2\).*needs \(4, 4\)"):
        check_tensors(tensors, tensors | {"part.3": torch.zeros(2, 2)}, tmp_path)


def test_views_of_one_storage_can_be_written(tmp_path):
    """safetensors refuses shared storage; a slice of a bigger tensor must still be saved."""
    big = torch.randn(4, 4)
    write_tensors(tmp_path, {"half": big[:2], "column": big[:, 1]})
    assert same(read_tensors(tmp_path), {"half": big[:2], "column": big[:, 1]})


def test_reading_does_not_tie_tensors_to_the_file(tmp_path):
    write_tensors(tmp_path, {"a": torch.zeros(3)})
    read_tensors(tmp_path)["a"].add_(1)
    assert torch.equal(read_tensors(tmp_path)["a"], torch.zeros(3))
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert torch.equal(read_tensors(tmp_path)["a"], torch.ones(3))


def test_tensors_are_mapped_and_only_what_is_used_is_read(tmp_path):
    """How a process of many reads its share of a large model, and no more."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    write_tensors(tmp_path, {"large": torch.zeros(40_000_000)})  # 160 MB
    before = resident()
    share = read_tensors(tmp_path)["large"][1_000_000:2_000_000].clone()
    assert len(share) == 1_000_000
    assert resident() - before < 60_000_000
