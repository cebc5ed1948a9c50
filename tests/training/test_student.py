"""The stage distill: a student draws in four steps what its teacher draws in many."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file

from metamorph.config import DataConfig, RunConfig
from metamorph.costs.decoder_flops import TARGET, UNET
from metamorph.data.encode import encode
from metamorph.data.mixture import parts_of
from metamorph.data.opening import open_source
from metamorph.data.pictures import Pictures, PictureStream
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.errors import Stopped, UserError
from metamorph.model.opening import open_encoder
from metamorph.monitor.metrics_file import read_metrics
from metamorph.planning.decoder_outlines import outline_decoder
from metamorph.planning.dry_run import describe_run
from metamorph.training.decoder_stage import DecoderStage
from metamorph.training.decoders.student import DistillTrainer, guided
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from tests.interruption import interrupt_in_step
from tests.processes import run_processes
from tests.tiny_run import GRID, distill_config, write_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A random teacher, which draws with a guidance of 2, and its encoder."""
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def config(folders, tmp_path) -> RunConfig:
    return distill_config(folders, tmp_path)


@pytest.fixture(scope="session")
def trained(folders, tmp_path_factory) -> Path:
    """The folder of a run of `config`."""
    config = distill_config(folders, tmp_path_factory.mktemp("trained"))
    train(config)
    return Path(config.output)


def pictures(count: int, trainer: DistillTrainer) -> PictureBatch:
    source = open_source(DataConfig(source="toy_scenes", kinds={"draw": 1.0}), 0, words=False)
    samples = Pictures(source, trainer.encoder_square, trainer.square)
    stream = PictureStream(samples.sample, len(samples))
    return PictureBatch.of([next(stream) for _ in range(count)])


def with_decoder(config: RunConfig, **changes) -> RunConfig:
    return replace(config, decoder=replace(config.decoder, **changes))


def test_a_student_that_draws_as_its_teacher_has_nothing_to_learn(config, monkeypatch):
    """Who knows a picture predicts what leads to it from everywhere, with guidance and without."""
    trainer = DistillTrainer(config)
    clean = torch.randn(6, *trainer.shape)

    def knows_the_picture(latents, timesteps, conditions):
        known = clean.repeat(len(latents) // len(clean), 1, 1, 1)
        signal, noise = (rates[int(timesteps[0])] for rates in
                         (trainer.trajectory.signal, trainer.trajectory.noise))  # fmt: skip
        return SimpleNamespace(sample=(latents - signal * known) / noise)

    monkeypatch.setattr(trainer.unet, "forward", knows_the_picture)
    monkeypatch.setattr(trainer.teacher, "forward", knows_the_picture)
    loss, logged = trainer(pictures(6, trainer), Draws(0, 0, range(6)))
    assert loss.item() == logged["distillation_loss"].item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_loss_is_how_far_the_student_is_from_diffusers_drawing(config, tmp_path, zero_snr):
    """Each of its steps by DDIM, and two of the guided teacher from where it stood; gradients too,
    which go through no earlier step. Zero terminal SNR is of a teacher that predicts velocity."""
    if zero_snr:
        config = with_decoder(config, teacher=str(velocity_teacher(config, tmp_path)))
    config = with_decoder(config, teacher_steps=8)
    trainer = DistillTrainer(config)
    with torch.no_grad():
        for parameter in trainer.unet.parameters():  # a student that has learned something
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = pictures(3, trainer)
    loss, _ = trainer(batch, Draws(0, 5, range(3)))
    loss.backward()
    found = trainer.unet.conv_in.weight.grad.clone()
    trainer.zero_grad()

    few, many = (DDIMScheduler.from_config(trainer.scheduler.config) for _ in range(2))
    few.set_timesteps(4)
    many.set_timesteps(8)
    conditions = trainer.adapter(trainer.vision(trainer.vision.normalize(batch.encoder_pixels)))
    latents = Draws(0, 5, range(3))(torch.randn, (3, *trainer.shape))
    errors = []
    for number, timestep in enumerate(few.timesteps):
        wanted = latents
        for short in many.timesteps[2 * number : 2 * number + 2]:
            with torch.no_grad():
                said = trainer.teacher(wanted, short, conditions).sample
                unguided = trainer.teacher(wanted, short, 0 * conditions).sample
                said = unguided + 2.0 * (said - unguided)
            wanted = many.step(said, int(short), wanted).prev_sample
        said = trainer.unet(latents, timestep, conditions).sample
        arrived = few.step(said, int(timestep), latents).prev_sample
        errors.append((arrived - wanted).square().mean())
        latents = arrived.detach()
    expected = torch.stack(errors).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found, trainer.unet.conv_in.weight.grad, rtol=1e-2, atol=1e-5)


def velocity_teacher(config: RunConfig, folder: Path) -> Path:
    """The teacher, as one that predicts velocity and begins with noise alone."""
    teacher = shutil.copytree(config.decoder.teacher, folder / "velocity")
    path = teacher / "scheduler" / "scheduler_config.json"
    changed = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return teacher


def test_a_student_of_velocity_draws_by_it_from_noise_alone(config, tmp_path):
    teacher = velocity_teacher(config, tmp_path)
    student = with_decoder(config, teacher=str(teacher))
    scheduler = DistillTrainer(student).decoder(student.decoder).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.alphas_cumprod[-1] == 0
    path = teacher / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "epsilon"))
    with pytest.raises(UserError, match=r"decoder.teacher: .* predicts noise, .* v_prediction"):
        DistillTrainer(with_decoder(config, teacher=str(teacher)))


def test_a_step_in_parts_or_from_cached_features_is_the_same_step(config, tmp_path, monkeypatch):
    def step(config: RunConfig) -> tuple[float, torch.Tensor]:
        stage = DecoderStage(config, CPU)
        loss = stage.forward_backward(2)["distillation_loss"].item()
        return loss, stage.module.unet.conv_in.weight.grad

    config.data.samples = 8
    loss, gradient = step(config)
    parts, cache = parts_of(open_source(config.data, 0, words=False)), tmp_path / "cache"
    encode(parts, open_encoder(config.model), cache, "fp32")
    features = replace(config, data=replace(config.data, features=str(cache)))
    monkeypatch.setattr(AutoencoderKL, "encode", None)  # which it never does
    for other in (with_decoder(config, accumulate=2), features):
        found, its_gradient = step(other)
        assert found == pytest.approx(loss, rel=1e-4)
        torch.testing.assert_close(its_gradient, gradient, rtol=1e-3, atol=1e-6)


def test_adapters_and_averages_are_of_the_student_alone(config, folders):
    """LoRA moves attention and nothing else; what is saved is the moving average, merged."""
    config = with_decoder(config, ema_decay=0.9)
    config.training = replace(config.training, lora_rank=2, steps=1)
    folder = train(config)
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(folders / "decoder" / name), load_file(folder / name)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert moved == {name for name in before if name.endswith(layers)}
    whole = replace(config, output=f"{config.output}-whole")
    raw = train(with_decoder(whole, ema_decay=0.0))
    assert any(not torch.equal(after[key], value) for key, value in load_file(raw / name).items())


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


def test_operations_are_counted_of_all_steps_of_both(config):
    few, many = (DistillTrainer(with_decoder(config, teacher_steps=n)).flops for n in (4, 8))
    assert "vae" not in few
    assert many[TARGET].total == 2 * few[TARGET].total and many[UNET] == few[UNET]
    one_step = few[TARGET].total / (2 * 4)  # with and without condition
    adapter = few[UNET].forward - 4 * one_step  # which runs once, and is not trained
    longer = with_decoder(config, sampling_steps=8, teacher_steps=8)
    assert 0 < adapter < one_step
    assert DistillTrainer(longer).flops[UNET].forward == adapter + 8 * one_step


def test_operations_and_their_plan_are_of_the_guidance_that_is_learnt(config, folders, tmp_path):
    """The second branch is left out at a guidance of 1, the teacher's own or that of a key."""
    teacher = shutil.copytree(folders / "decoder", tmp_path / "unguided")
    index = json.loads((teacher / "model_index.json").read_text())
    (teacher / "model_index.json").write_text(json.dumps(index | {"guidance_scale": 1.0}))
    twice, once = config, with_decoder(config, guidance_scale=1.0)
    unguided = with_decoder(config, teacher=str(teacher))
    guided_twice, guided_once = (DistillTrainer(run).flops for run in (twice, unguided))
    assert guided_twice[UNET] == guided_once[UNET]
    assert guided_twice[TARGET].total == 2 * guided_once[TARGET].total
    planned = [outline_decoder(run).flops for run in (twice, once, unguided)]
    assert planned == [guided_twice, guided_once, guided_once]


def test_the_student_moves_alone_and_is_saved_as_a_decoder_of_four_steps(trained, folders):
    folder = trained / "decoder"
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
    lines = read_metrics(trained)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["distillation_loss"] > 0 for line in lines)


def test_resumed_equals_uninterrupted_bit_for_bit(config, trained, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        with pytest.raises(Stopped, match="step 2 of 3"):
            train(config)
    resumed = train(replace(config, resume=True))
    one, other = (load_file(next((folder / "unet").glob("*.safetensors")))
                  for folder in (trained / "decoder", resumed))  # fmt: skip
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_learn_as_one(config, trained):
    run_processes(2, train, config)
    losses = [
        [line["distillation_loss"] for line in read_metrics(output)]
        for output in (trained, Path(config.output))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_dry_run_says_who_learns_from_whom(config):
    text = describe_run(config)
    assert "stage distill on cpu, step 0 of 3" in text
    rows = {
        line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")
    }
    assert rows["teacher"] == ["0", rows["unet"][0]] and rows["unet"][1] == "0"
    assert not Path(config.output).exists()
