"""Cached features: what is stored, how far it is from the encoder, and how a cut run goes on."""

import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from data_files import turns, write_lines
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from metamorph.config import DataConfig
from metamorph.data.encode import encode, verify
from metamorph.data.features import (
    FeatureFolder,
    FeatureIndex,
    open_features,
    restore,
    store,
    stored_features,
)
from metamorph.data.images import DECODING, key_of
from metamorph.data.mixture import parts_of
from metamorph.data.opening import open_source
from metamorph.data.shard_writer import ShardWriter
from metamorph.data.shards import DTYPES
from metamorph.data.toy.source import ToyScenes
from metamorph.errors import SampleError, UserError
from metamorph.model.encoder_identity import identity
from metamorph.model.siglip import SiglipEncoder
from tests.tiny_run import write_vision

GRID = 2


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> SiglipEncoder:
    folder = write_vision(tmp_path_factory.mktemp("siglip"))
    return SiglipEncoder.from_pretrained(folder, GRID)


@pytest.fixture
def source():
    return ToyScenes(0, {"edit": 1.0, "draw": 1.0, "text": 1.0}, samples=20)


def images_of(source) -> list:
    return [image for i in range(len(source)) for image in source.sample(i).images]


def write(source, vision, folder, dtype="fp32", **options):
    options = {"shard_rows": 8, "batch_size": 5, "threads": 2} | options
    return encode({"data": source}, vision, folder, dtype, **options)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_stored_features_are_the_encoders_within_the_error_they_report(
    source, vision, tmp_path, dtype
):
    index, skips = write(source, vision, tmp_path / "f", dtype)
    images = images_of(source)
    keys = [key_of(image) for image in images]
    assert index.rows == len(set(keys)) > 16 and not skips.counts
    live = vision(vision.preprocess(images))
    cached = FeatureFolder(tmp_path / "f").read(keys)
    assert cached.shape == live.shape and cached.dtype == torch.float32
    error = 1 - F.cosine_similarity(cached, live, dim=-1)
    if dtype == "fp32":
        # A batch of another size may round its sums in another order.
        torch.testing.assert_close(cached, live, rtol=0, atol=1e-6)
    assert error.max() <= index.largest_error + 1e-6
    assert (
        index.mean_error
        <= index.largest_error
        < {"fp32": 1e-6, "fp16": 1e-5, "bf16": 1e-4, "int8": 1e-3}[dtype]
    )
    norms = cached.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-2)


def test_int8_keeps_direction_at_full_width():
    features = F.normalize(
        torch.randn(3, 4, 1152, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    stored = store(features, "int8")
    assert stored.dtype == torch.int8 and stored.abs().amax() == 127
    assert (1 - F.cosine_similarity(restore(stored), features, dim=-1)).max() < 1e-4
    assert torch.equal(restore(store(torch.zeros(1, 1152), "int8")), torch.zeros(1, 1152))


def test_each_image_is_stored_once_in_shards_of_their_size(source, vision, tmp_path):
    index, _ = write(source, vision, tmp_path, shard_rows=8)
    assert [shard.rows for shard in index.shards[:-1]] == [8] * (len(index.shards) - 1)
    with safe_open(tmp_path / "shard-00000.safetensors", "pt") as file:
        assert file.get_tensor("features").shape == (8, GRID * GRID, vision.width)
    write(source, vision, tmp_path)  # again: nothing is left to do
    assert FeatureFolder(tmp_path).index == index


def test_a_run_that_was_cut_short_goes_on(source, vision, tmp_path, monkeypatch):
    whole, _ = write(source, vision, tmp_path / "whole")
    calls = []
    forward = SiglipEncoder.forward

    def failing(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, pixels)

    monkeypatch.setattr(SiglipEncoder, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        write(source, vision, tmp_path / "cut")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cut").glob("*.safetensors")}
    assert kept
    resumed, _ = write(source, vision, tmp_path / "cut")
    for name, content in kept.items():
        assert (tmp_path / "cut" / name).read_bytes() == content
    assert resumed.rows == whole.rows
    keys = [key_of(image) for image in images_of(source)]
    one, other = (FeatureFolder(tmp_path / name).read(keys) for name in ("whole", "cut"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_damage_is_found_and_mended(source, vision, tmp_path):
    index, _ = write(source, vision, tmp_path)
    assert verify(tmp_path) == []
    path = tmp_path / index.shards[1].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    (tmp_path / index.shards[0].file).unlink()
    assert verify(tmp_path) == [index.shards[0].file, index.shards[1].file]
    mended, _ = write(source, vision, tmp_path)
    assert verify(tmp_path) == [] and mended.rows == index.rows


def test_an_image_that_was_not_encoded_makes_its_sample_unusable(source, vision, tmp_path):
    write(source, vision, tmp_path)
    folder = FeatureFolder(tmp_path)
    copy = pickle.loads(pickle.dumps(folder))  # as another process gets it
    with pytest.raises(SampleError) as caught:
        copy.read([key_of(Image.new("RGB", (9, 9)))])
    assert caught.value.cause == "feature missing"
    assert folder.read([]).shape == (0, GRID * GRID, vision.width)


def test_keys_that_begin_alike_or_hold_zeros_are_told_apart(tmp_path):
    index = FeatureIndex("", 1, 4, dtype="fp32")
    keys = [bytes(8) + bytes([i]) * 24 for i in range(5)] + [b"\1" * 30 + bytes(2)]
    features = F.normalize(torch.randn(6, 1, 4), dim=-1)
    writer = ShardWriter(tmp_path, index, shard_rows=2)
    writer.add(keys, *stored_features(features, "fp32"))
    folder = FeatureFolder(tmp_path)
    assert len(folder.index.shards) == 3 and set(folder.all_keys()) == set(keys)
    order = [5, 3, 0, 0, 4, 1, 2]
    assert torch.equal(folder.read([keys[i] for i in order]), features[order])
    with pytest.raises(SampleError):
        folder.read([bytes(8) + b"\7" * 24])


def test_features_of_another_encoder_or_form_are_refused(source, vision, tmp_path):
    write(source, vision, tmp_path / "f", "int8")
    folder = str(tmp_path / "f")
    assert open_features(folder, vision).index.dtype == "int8"
    torch.manual_seed(1)
    other = SiglipEncoder(vision.config, GRID)
    with pytest.raises(UserError, match="data.features.*made by another encoder"):
        open_features(folder, other)
    with pytest.raises(UserError, match="another encoder, or for another grid than 4"):
        finer = SiglipEncoder(vision.config, 4)
        finer.load_state_dict(vision.state_dict())
        open_features(folder, finer)
    with pytest.raises(UserError, match="--output:.*holds features of dtype int8, not bf16"):
        write(source, vision, tmp_path / "f", "bf16")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="--output:.*notes holds something else"):
        write(source, vision, tmp_path / "notes")


def test_features_of_pictures_that_were_read_in_another_way_are_refused(source, vision, tmp_path):
    index, _ = write(source, vision, tmp_path)
    assert index.decoding == DECODING
    values = json.loads((tmp_path / "index.json").read_text())
    del values["decoding"]  # as folders were written before
    (tmp_path / "index.json").write_text(json.dumps(values))
    problem = rf"decoding 1, now {DECODING}\); encode the data anew into another folder"
    with pytest.raises(UserError, match=f"data.features: .*{problem}"):
        open_features(str(tmp_path), vision)
    with pytest.raises(UserError, match=f"--output: .*{problem}"):
        write(source, vision, tmp_path)


def test_the_way_to_resample_is_part_of_the_identity(vision):
    nearest = SiglipEncoder(vision.config, GRID, resample=Image.Resampling.NEAREST)
    nearest.load_state_dict(vision.state_dict())
    assert identity(nearest) != identity(vision)


def test_the_identity_survives_a_bfloat16_copy(vision):
    copy = SiglipEncoder(vision.config, GRID)
    copy.load_state_dict(vision.to(torch.bfloat16).state_dict())
    assert identity(copy.float()) == identity(vision)
    vision.float()


@pytest.mark.parametrize(
    "text",
    ["{}", '{"shards": 3}', '{"encoder": "", "grid": 2, "width": 3, "dtype": "x", "shards": []}'],
)
def test_an_index_of_another_kind_is_a_user_error(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match="is no index of features"):
        FeatureFolder(tmp_path)


def test_shards_may_not_lie_elsewhere(source, vision, tmp_path):
    write(source, vision, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["file"] = "../shard-00000.safetensors"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is no index of features"):
        FeatureFolder(tmp_path)


def test_unreadable_images_are_skipped_and_counted(vision, tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    names = ("a.png", "b.png", "gone.png", "a.png")
    records = [{"image": name, "conversations": turns("<image>", "a")} for name in names]
    path = write_lines(tmp_path / "data.jsonl", *records)
    source = open_source(DataConfig(path=str(path), shuffle=False), 0)
    index, skips = encode(parts_of(source), vision, tmp_path / "f", "bf16")
    assert index.rows == 1 and skips.tried == 4
    assert skips.counts == {"corrupt image": 1, "missing image": 1}


def test_shards_are_compared_with_their_hashes_when_opened(source, vision, tmp_path):
    index, _ = write(source, vision, tmp_path)
    path = tmp_path / index.shards[1].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of a key: safetensors has nothing against it
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001\S* is not what was written .*makes it anew"):
        open_features(str(tmp_path), vision)
    open_features(str(tmp_path), vision, verify=False)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00001\S* cannot be read"):
        open_features(str(tmp_path), vision)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"keys": torch.zeros(8, 31, dtype=torch.uint8)}, r"keys are torch.uint8 of shape \[8, 31"),
        ({"keys": torch.zeros(8, 32)}, r"keys are torch.float32 of shape \[8, 32\]"),
        ({"keys": None}, "is no shard of features"),
        ({"features": torch.zeros(7, 4, 24)}, r"of shape \[7, 4, 24\], expected F32 .*\[8, 4, 24"),
        ({"features": torch.zeros(8, 4, 24, dtype=torch.int8)}, "features are I8"),
        ({"features": torch.zeros(())}, r"features are .*shape \[\]"),
        ({"features": None}, "is no shard of features"),
    ],
)
def test_shards_that_are_none_are_named_without_hashes_too(
    source, vision, tmp_path, change, problem
):
    index, _ = write(source, vision, tmp_path)
    path = tmp_path / index.shards[0].file
    tensors = load_file(path) | change
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    with pytest.raises(UserError, match=problem):
        FeatureFolder(tmp_path, verify=False)
    path.write_text("no safetensors")
    with pytest.raises(UserError, match="cannot be read .*makes it anew"):
        FeatureFolder(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grid", "2"),
        ("grid", 0),
        ("width", 1.5),
        ("dtype", ["fp32"]),
        ("dtype", "fp8"),
        ("fit", "stretch"),
        ("grid", -2),
    ],
)
def test_numbers_of_an_index_are_numbers(source, vision, tmp_path, key, value):
    index, _ = write(source, vision, tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(index.to_dict() | {key: value}))
    with pytest.raises(UserError, match="is no index of features"):
        FeatureFolder(tmp_path)
    shards = [index.to_dict()["shards"][0] | {"rows": True}]
    (tmp_path / "index.json").write_text(json.dumps(index.to_dict() | {"shards": shards}))
    with pytest.raises(UserError, match="is no index of features"):
        FeatureFolder(tmp_path)
