"""What a run is refused for before anything is loaded, by the name of the key."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metamorph.cli.command import main
from metamorph.config import DataConfig, DecoderConfig
from metamorph.config.reading import load_config, save_config
from metamorph.errors import UserError
from metamorph.training.rules import check_plan, check_rules
from metamorph.training.rules.uses import check_uses
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")
FILES = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))
CONFIGS = [path for path in FILES if path.parent.name != "mixtures"]  # these are no runs


@pytest.fixture
def decoder_file(tmp_path) -> str:
    save_config(tiny_config(tmp_path, "decoder"), tmp_path / "run.yaml")
    return str(tmp_path / "run.yaml")


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--dry-run", "--world-size", "4"]])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.rows_per_step", "2"),
        ("training.weights", "bf16"),
        ("data.row_length", "512"),
        ("parallel.cpu_offload", "true"),
        ("model.attention", "flash_attn"),
        ("monitor.decoder", "/nonexistent"),
    ],
)
def test_a_key_that_the_decoder_stage_does_not_use(decoder_file, key, value, options, capsys):
    assert main(["train", decoder_file, f"--{key}", value, *options]) == 2
    assert f"metamorph: {key}: stage decoder does not use it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world-size", "2"], "--world-size: it plans, so it needs --dry-run beside it"),
        (["--gpu-type", "h100"], "--gpu-type: it plans, so it needs --dry-run beside it"),
        (["--dry-run", "--gpu-type", "h100"], "--gpu-type: a run on the devices here is no plan"),
    ],
)
def test_an_option_of_plans_needs_one(decoder_file, options, message, capsys):
    assert main(["train", decoder_file, *options]) == 2
    assert f"metamorph: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["language", "align", "instruct"])
def test_keys_of_the_decoder_are_its_own(tmp_path, stage):
    config = tiny_config(tmp_path, stage)
    config.decoder.guidance_scale = 5.0
    with pytest.raises(UserError, match=r"decoder.guidance_scale: .* \(only decoder, distill\)"):
        check_rules(config, CPU)


@pytest.mark.parametrize(
    ("key", "value"), [("base", "runs/base"), ("guidance_scale", 5.0), ("condition_length", 77)]
)
def test_a_key_that_the_kind_of_decoder_does_not_use(tmp_path, key, value):
    config = tiny_config(tmp_path, "decoder")
    setattr(config.decoder, key, value)
    check_uses(config)
    config.decoder = DecoderConfig(kind="rae", **{key: value})
    message = rf"decoder.{key}: decoder.kind rae does not use it \(only diffusion\); leave it out"
    with pytest.raises(UserError, match=message):
        check_rules(config, CPU)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_run_files_set_no_key_in_vain(path):
    check_uses(load_config(path))


@pytest.mark.parametrize("stage", ["language", "align"])
def test_a_visual_loss_needs_a_vision_head_that_is_trained(tmp_path, stage):
    config = tiny_config(tmp_path, stage, visual_coefficient=0.5)
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match=f"visual_coefficient: got 0.5, but stage {stage} leav"):
            check()
    config.training.visual_coefficient = 0.0
    check_rules(config, CPU)


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("language", "projector_rate_factor"),
        ("align", "vision_head_rate_factor"),
        ("decoder", "language_rate_factor"),
    ],
)
def test_a_rate_of_what_the_stage_does_not_train(tmp_path, stage, key):
    config = tiny_config(tmp_path, stage, **{key: 2.0})
    with pytest.raises(UserError, match=f"training.{key}: stage {stage} does not use it"):
        check_rules(config, CPU)


def test_some_part_is_trained(tmp_path):
    none = {"projector_rate_factor": 0.0, "language_rate_factor": 0.0}
    config = tiny_config(tmp_path, "align", **none)
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match="stage align would train nothing"):
            check()
    check_rules(tiny_config(tmp_path, "instruct", **none), CPU)
    with pytest.raises(UserError, match="stage instruct would train nothing"):
        check_rules(tiny_config(tmp_path, "instruct", **none, vision_head_rate_factor=0.0), CPU)


def test_data_that_are_not_named(tmp_path):
    config = replace(tiny_config(tmp_path, "instruct"), data=DataConfig(source="parquet"))
    with pytest.raises(UserError, match="data.path: it is empty, expected .* samples"):
        check_rules(config, CPU)
    check_rules(config, CPU, own_source=True)
    config.data.source = "mixture"
    with pytest.raises(UserError, match="expected a YAML file that names the parts"):
        check_rules(config, CPU)


def test_drawings_need_a_decoder(tmp_path):
    config = tiny_config(tmp_path, "instruct")
    config.monitor.samples_every = 5
    with pytest.raises(UserError, match="monitor.decoder: monitor.samples_every needs a decoder"):
        check_rules(config, CPU)


def test_a_precision_that_is_not_there_is_named_by_its_key(tmp_path, monkeypatch):
    monkeypatch.setattr("metamorph.model.precision.torchao_absence", lambda device: "not here")
    config = tiny_config(tmp_path, "instruct", precision="fp8")
    with pytest.raises(UserError, match="^training.precision fp8: torchao cannot be used here"):
        check_rules(config, CPU)
    config = tiny_config(tmp_path, "instruct", precision="bf16", fp8_recipe="rowwise")
    with pytest.raises(UserError, match="^training.fp8_recipe: rowwise is for precision fp8, got"):
        check_rules(config, CPU)


@pytest.mark.parametrize(
    ("keys", "row_length", "message"),
    [
        ({"fp8_recipe": "rowwise"}, 64, "training.fp8_recipe: rowwise is for precision fp8"),
        (
            {"precision": "fp8", "fp8_backend": "native", "fp8_recipe": "rowwise"},
            64,
            "training.fp8_recipe: expected none for native, got 'rowwise'",
        ),
        (
            {
                "precision": "fp8",
                "fp8_backend": "transformer_engine",
                "fp8_recipe": "Float8BlockScaling",
                "activation_checkpointing": "full",
            },
            1040,
            "data.row_length: precision fp8 by Float8BlockScaling needs a multiple of 128, got",
        ),
    ],
)
def test_float8_keys_that_no_device_could_follow(tmp_path, keys, row_length, message):
    """Asked of a plan, which knows no device, as of a run."""
    config = tiny_config(tmp_path, "instruct", **keys)
    config.data.row_length = row_length
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match=f"^{message}"):
            check()


def test_a_plan_of_several_processes_is_refused_what_torchrun_would_be(tmp_path):
    config = tiny_config(tmp_path, "instruct", optimizer="adamw8bit")
    check_plan(config, 1)
    with pytest.raises(UserError, match="training.optimizer: adamw8bit is for a run of one proc"):
        check_plan(config, 2)


@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("instruct", {"training.lora_alpha": 8.0}, "training.lora_alpha: it needs training.lora_r"),
        ("decoder", {"training.lora_targets": ["q"]}, "training.lora_targets: it needs training"),
        ("instruct", {"training.weights": "bf16"}, "training.weights: bf16 loses small updates"),
        ("align", {"training.fp8_backend": "native"}, "training.fp8_backend: native is for precis"),
        ("instruct", {"data.verify_features": False}, "data.verify_features: it needs data.featu"),
        ("decoder", {"monitor.samples": 9}, "monitor.samples: it needs monitor.samples_every"),
        ("language", {"monitor.decoder": "x"}, "monitor.decoder: it needs monitor.samples_every"),
        ("instruct", {"monitor.samples_every": 9}, "monitor.decoder: monitor.samples_every needs"),
        ("align", {"parallel.cpu_offload": True}, "parallel.cpu_offload: it needs a run that torc"),
        ("align", {"data.image_root": "images"}, "data.image_root: source toy_scenes does not"),
        ("decoder", {"data.path": "pictures"}, "data.path: source toy_scenes does not use it"),
        ("align", {"resume": True, "overwrite": True}, "overwrite: resume goes on with what is in"),
        (
            "instruct",
            {"training.visual_coefficient": 0.0, "training.vision_head_rate_factor": 2.0},
            "training.vision_head_rate_factor: the vision head learns nothing where",
        ),
        (
            "instruct",
            {
                "training.visual_coefficient": 0.0,
                "training.projector_rate_factor": 0.0,
                "training.language_rate_factor": 0.0,
            },
            "training.projector_rate_factor: projector_rate_factor and language_rate_factor are 0",
        ),
    ],
)
def test_what_would_be_silently_left_out_of_a_run_or_its_plan(tmp_path, stage, keys, message):
    save_config(tiny_config(tmp_path, stage), tmp_path / "run.yaml")
    config = load_config(tmp_path / "run.yaml", keys)
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match=f"^{message}"):
            check()


def test_a_plan_of_several_processes_may_keep_weights_in_host_memory(tmp_path):
    config = tiny_config(tmp_path, "align", rows_per_step=2)
    config.parallel.cpu_offload = True
    check_plan(config, 2)
