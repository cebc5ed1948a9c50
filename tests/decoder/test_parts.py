"""Folders of diffusers: which of them visual features can drive, and a sentence for all others."""

import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from metamorph.decoder.parts import load_base
from metamorph.errors import UserError
from tests.tiny_run import tiny_diffusion

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A base that is as it should be; tests change copies."""
    folder = tmp_path_factory.mktemp("base")
    for name, part in zip(("vae", "unet", "scheduler"), tiny_diffusion(), strict=True):
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture
def base(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "base")


def refused(base) -> str:
    with pytest.raises(UserError) as caught:
        load_base(base)
    assert str(caught.value).startswith(str(base))
    return str(caught.value)


def change_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_plain_base_is_taken(whole):
    vae, unet, scheduler = load_base(whole)
    assert unet.config.cross_attention_dim == 12 and vae.config.latent_channels == 4
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time', a condition"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', a condition"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ({"num_class_embeds": 1000}, "num_class_embeds is 1000, a condition"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type is 'image_proj'"),
        ({"encoder_hid_dim": 1024}, "encoder_hid_dim is 1024"),
        ({"in_channels": 9}, "in_channels is 9, expected the 4 channels of the latents of"),
        ({"out_channels": 8}, "out_channels is 8, expected the 4 channels"),
        ({"cross_attention_dim": [12, 24]}, "cross_attention_dim is [12, 24], expected one whole"),
        ({"cross_attention_dim": None}, "cross_attention_dim is None"),
        ({"cross_attention_dim": 16}, "cannot be loaded"),  # its weights are of another width
        ({"sample_size": None}, "sample_size is None, expected one whole number"),
        ({"sample_size": [8, 16]}, "sample_size is [8, 16]"),
        ({"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel', expected UNet2DCond"),
        ({"down_block_types": ["DownBlock2D"], "mid_block_type": "UNetMidBlock2D",
          "up_block_types": ["UpBlock2D"]}, "no block has cross-attention"),
        ({"down_block_types": ["DownBlock2D"], "mid_block_type": None,
          "up_block_types": ["UpBlock2D"]}, "no block has cross-attention"),
    ],
)  # fmt: skip
def test_other_unets_are_refused_by_their_config(base, changes, expected):
    config = base / "unet" / "config.json"
    change_json(config, **changes)
    assert expected in refused(base)
    assert refused(base).startswith(str(config if expected != "cannot be loaded" else base))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"latent_channels": 16}, "unet/config.json: in_channels is 4, expected the 16 channels"),
        ({"shift_factor": 0.0609}, "vae/config.json: shift_factor is 0.0609"),
        ({"latents_mean": [0.1] * 4}, "vae/config.json: latents_mean is"),
        ({"in_channels": 1}, "vae/config.json: in_channels is 1, expected 3"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny', expected"),
    ],
)
def test_other_vaes_are_refused_by_their_config(base, changes, expected):
    change_json(base / "vae" / "config.json", **changes)
    assert expected in refused(base)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prediction_type": "sample"},
         "prediction_type is 'sample', expected 'epsilon' or 'v_prediction'"),
        ({"beta_schedule": "circle"}, "scheduler: cannot be loaded"),
        ({"beta_schedule": None, "_class_name": "FlowMatchEulerDiscreteScheduler"},
         "'FlowMatchEulerDiscreteScheduler' names no beta_schedule"),
    ],
)  # fmt: skip
def test_other_noise_schedules_are_refused(base, changes, expected):
    change_json(base / "scheduler" / "scheduler_config.json", **changes)
    assert expected in refused(base)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_missing_and_broken_files_are_named(base, part):
    [config] = (base / part).glob("*config.json")
    config.write_text("{oops")
    assert f"{part}/{config.name}: not readable as JSON" in refused(base)
    config.unlink()
    assert f"{part}/{config.name}: no such file" in refused(base)
    shutil.rmtree(base / part)
    assert f"{part} does not exist, expected a folder" in refused(base)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_must_be_safetensors_and_whole(base, part):
    weights = base / part / f"{WEIGHTS}.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file({key: tensors[key] for key in tensors if key != name}, weights, {"format": "pt"})
    assert f"{part}: its weights lack the tensor {name!r}" in refused(base)
    weights.write_bytes(weights.read_bytes()[:-8])
    assert f"{part}: cannot be loaded" in refused(base)
    weights.unlink()
    assert f"{part}: {WEIGHTS}.safetensors is missing" in refused(base)
    torch.save(tensors, base / part / f"{WEIGHTS}.bin")
    assert f"{part}: it has {WEIGHTS}.bin, a pickle, which is never opened" in refused(base)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_of_halves_alone_is_read(base, variant):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    expected = load_base(base)[1].state_dict()
    for part in ("unet", "vae"):
        weights = base / part / f"{WEIGHTS}.safetensors"
        halves = {key: tensor.to(dtype) for key, tensor in load_file(weights).items()}
        save_file(halves, weights.with_name(f"{WEIGHTS}.{variant}.safetensors"), {"format": "pt"})
        weights.unlink()
    for name, tensor in load_base(base)[1].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].to(dtype).float()), name


def test_shards_of_halves_are_read_and_the_plain_file_comes_first(base):
    unet = UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False)
    weights = base / "unet" / f"{WEIGHTS}.safetensors"
    unet.half().save_pretrained(base / "unet", variant="fp16", max_shard_size="30KB")
    assert (base / "unet" / f"{WEIGHTS}.safetensors.index.fp16.json").is_file()
    rounded = "conv_in.weight"
    whole, half = load_file(weights)[rounded], unet.state_dict()[rounded].float()
    assert torch.equal(load_base(base)[1].state_dict()[rounded], whole)
    weights.unlink()
    assert torch.equal(load_base(base)[1].state_dict()[rounded], half)


def test_several_variants_without_a_plain_file_are_named(base):
    weights = base / "unet" / f"{WEIGHTS}.safetensors"
    for variant in ("ema", "non_ema"):
        shutil.copy(weights, weights.with_name(f"{WEIGHTS}.{variant}.safetensors"))
    weights.unlink()
    assert "is missing, it has only ema, non_ema" in refused(base)
