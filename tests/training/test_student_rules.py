"""What is no run of the stage distill, and why, in a sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metamorph.config import RunConfig
from metamorph.errors import UserError
from metamorph.training.decoders.student import DistillTrainer
from metamorph.training.rules import check_rules
from tests.tiny_run import distill_config, write_teacher, write_vision

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def config(folders, tmp_path) -> RunConfig:
    return distill_config(folders, tmp_path)


def with_decoder(config: RunConfig, **changes) -> RunConfig:
    return replace(config, decoder=replace(config.decoder, **changes))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("decoder", "base", "runs/base"), ("decoder", "condition_dropout", 0.1),
        ("decoder", "adapter_hidden", 5), ("decoder", "kind", "rae"),
        ("decoder", "latents", "cache"), ("decoder", "feature_noise", 0.5),
        ("training", "visual_coefficient", 1.0), ("data", "row_length", 128),
        ("model", "language", "llama"),
    ],
)  # fmt: skip
def test_keys_of_other_stages_are_refused(config, section, key, value):
    setattr(getattr(config, section), key, value)
    with pytest.raises(UserError, match=rf"{section}.{key}: stage distill does not use it"):
        check_rules(config, CPU)


@pytest.mark.parametrize(("key", "value"), [("teacher", "runs/decoder"), ("teacher_steps", 32)])
def test_its_keys_are_refused_in_other_stages(config, key, value):
    other = RunConfig(stage="decoder", output="none", data=config.data)
    setattr(other.decoder, key, value)
    with pytest.raises(UserError, match=rf"decoder.{key}: stage decoder .* \(only distill\)"):
        check_rules(other, CPU)


def test_a_students_step_is_as_many_whole_ones(config):
    with pytest.raises(UserError, match=r"decoder.teacher_steps: 50 steps .* by the 4"):
        check_rules(with_decoder(config, teacher_steps=50), CPU)
    with pytest.raises(UserError, match=r"decoder.teacher_steps: got 2000, .* 1000 timesteps"):
        DistillTrainer(with_decoder(config, teacher_steps=2000))


def test_a_teacher_that_is_none_is_one_sentence(config, folders, tmp_path):
    def refusal(**changes) -> str:
        with pytest.raises(UserError) as caught:
            DistillTrainer(with_decoder(config, **changes))
        return str(caught.value)

    assert "decoder.teacher" in refusal(teacher="nowhere")
    assert "decoder.teacher" in refusal(teacher="")
    assert "model_index.json" in refusal(teacher=str(folders / "siglip"))
    broken = shutil.copytree(folders / "decoder", tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    assert "damaged safetensors" in refusal(teacher=str(broken))
    index = broken / "model_index.json"
    index.write_text(index.read_text().replace("VisualDecoder", "StableDiffusionPipeline"))
    assert "StableDiffusionPipeline" in refusal(teacher=str(broken))


def test_a_teacher_of_other_features_is_refused(config, folders, tmp_path):
    with pytest.raises(UserError, match=r"width 24, but the encoder gives them of width 16"):
        write_vision(tmp_path / "narrow", width=16)
        model = replace(config.model, vision=str(tmp_path / "narrow"))
        DistillTrainer(replace(config, model=model))
    other = shutil.copytree(folders / "decoder", tmp_path / "other")
    index = other / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "encoder": "another"}))
    with pytest.raises(UserError, match=r"decoder.teacher: .* features of another encoder"):
        DistillTrainer(with_decoder(config, teacher=str(other)))
