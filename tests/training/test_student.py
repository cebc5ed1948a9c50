"""The stage distill: a student draws in four steps what its teacher draws in many."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from metamorph.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, TrainingConfig
from metamorph.data.opening import open_source
from metamorph.data.pictures import Pictures, PictureStream
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.errors import Stopped, UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.planning.dry_run import describe_run
from metamorph.training.decoders.student import DistillTrainer, guided
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from metamorph.training.rules import check_rules
from tests.interruption import interrupt_in_step
from tests.processes import run_processes
from tests.tiny_run import GRID, tiny_decoder, write_vision

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A random teacher, which draws with a guidance of 2, and its encoder."""
    folder = tmp_path_factory.mktemp("teacher")
    write_vision(folder / "siglip")
    tiny_decoder().save_pretrained(folder / "decoder")
    return folder


@pytest.fixture
def config(folders, tmp_path) -> RunConfig:
    return RunConfig(
        stage="distill",
        output=str(tmp_path / "student"),
        model=ModelConfig(vision=str(folders / "siglip"), grid=GRID),
        data=DataConfig(source="toy_scenes", kinds={"draw": 1.0}),
        training=TrainingConfig(steps=3, learning_rate=1e-3, log_every=1, checkpoint_every=2),
        decoder=DecoderConfig(teacher=str(folders / "decoder"), batch_size=4),
        device="cpu",
    )


def pictures(count: int, trainer: DistillTrainer) -> PictureBatch:
    source = open_source(DataConfig(source="toy_scenes", kinds={"draw": 1.0}), 0, words=False)
    samples = Pictures(source, trainer.encoder_square, trainer.square)
    stream = PictureStream(samples.sample, len(samples))
    return PictureBatch.of([next(stream) for _ in range(count)])


def with_decoder(config: RunConfig, **changes) -> RunConfig:
    return replace(config, decoder=replace(config.decoder, **changes))


def test_a_student_of_a_consistent_teacher_has_nothing_to_learn(config, monkeypatch):
    """Who knows a picture predicts what leads to it from everywhere, with guidance and without."""
    trainer = DistillTrainer(config)
    sampled = trainer.vae.encode(pictures(6, trainer).pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    clean = sampled.latent_dist.mean * trainer.vae.config.scaling_factor
    monkeypatch.setattr(trainer, "latents", lambda batch, draw: clean)

    def knows_the_picture(latents, timesteps, conditions):
        known = clean.repeat(len(latents) // len(clean), 1, 1, 1)
        signal, noise = (rate[timesteps].view(-1, 1, 1, 1) for rate in
                         (trainer.trajectory.signal, trainer.trajectory.noise))  # fmt: skip
        return SimpleNamespace(sample=(latents - signal * known) / noise)

    monkeypatch.setattr(trainer.unet, "forward", knows_the_picture)
    monkeypatch.setattr(trainer.teacher, "forward", knows_the_picture)
    loss, logged = trainer(pictures(6, trainer), Draws(0, 0, range(6)))
    assert loss.item() == logged["distillation_loss"].item() == pytest.approx(0, abs=1e-8)


def test_the_teacher_is_followed_as_it_draws_with_guidance():
    def unet(latents, timesteps, conditions):
        return SimpleNamespace(sample=latents + conditions.mean((1, 2)).view(-1, 1, 1, 1))

    latents, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([9, 5, 1])
    conditions = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 2, 12)
    said = guided(unet, conditions, 3.5)(latents, timesteps)
    torch.testing.assert_close(said, latents + 3.5 * conditions[:, :1, :1, None])
    said = guided(unet, conditions, 1.0)(latents, timesteps)
    torch.testing.assert_close(said, latents + conditions[:, :1, :1, None])


def test_guidance_is_the_teachers_unless_a_key_says_otherwise(config):
    assert DistillTrainer(config).guidance_scale == 2.0
    assert DistillTrainer(with_decoder(config, guidance_scale=5.0)).guidance_scale == 5.0


def test_the_student_moves_alone_and_is_saved_as_a_decoder_of_four_steps(config, folders):
    folder = train(config)
    assert folder == Path(config.output) / "decoder"
    name = "diffusion_pytorch_model.safetensors"
    for part, moves in (("unet", True), ("vae", False), ("adapter", False)):
        before = load_file(folders / "decoder" / part / name)
        after = load_file(folder / part / name)
        assert any(not torch.equal(before[key], after[key]) for key in before) == moves
    index = json.loads((folder / "model_index.json").read_text())
    assert (index["guidance_scale"], index["sampling_steps"]) == (1.0, 4)
    assert index["tokens_per_image"] == GRID**2 and index["encoder"]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "DDIMScheduler"
    assert scheduler["timestep_spacing"] == "trailing" and not scheduler["clip_sample"]
    opened = VisualDecoder.from_folder(folder)
    opened.set_progress_bar_config(disable=True)
    features = torch.nn.functional.normalize(torch.randn(3, GRID**2, 24), dim=-1)
    drawn = opened.draw(features, seeds=[5, 6, 7], output_type="pt")
    alone = opened.draw(features[1:2], seeds=[6], output_type="pt")
    torch.testing.assert_close(drawn[1:2], alone, rtol=1e-4, atol=1e-4)
    assert len(opened.steps(features)) == 4
    lines = read_metrics(Path(config.output))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["distillation_loss"] > 0 for line in lines)


def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, monkeypatch):
    whole = train(replace(config, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        with pytest.raises(Stopped, match="step 2 of 3"):
            train(config)
    resumed = train(replace(config, resume=True))
    one, other = (load_file(next((folder / "unet").glob("*.safetensors")))
                  for folder in (whole, resumed))  # fmt: skip
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_learn_as_one(config, tmp_path):
    train(config)
    parts = replace(config, output=str(tmp_path / "parts"))
    run_processes(2, train, parts)
    losses = [
        [line["distillation_loss"] for line in read_metrics(Path(run.output))]
        for run in (config, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("decoder", "base", "runs/base"), ("decoder", "condition_dropout", 0.1),
        ("decoder", "adapter_hidden", 5), ("decoder", "kind", "rae"),
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


def test_a_dry_run_says_who_learns_from_whom(config):
    text = describe_run(config)
    assert "stage distill on cpu, step 0 of 3" in text
    rows = {
        line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")
    }
    assert rows["teacher"] == ["0", rows["unet"][0]] and rows["unet"][1] == "0"
    assert not Path(config.output).exists()
