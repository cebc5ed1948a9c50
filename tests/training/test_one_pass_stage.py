"""Training of the one-pass decoder: its loss, its noise, and that a run can be cut and shared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from metamorph.config import DecoderConfig, RunConfig
from metamorph.data.toy.tasks import make_task
from metamorph.decoder.kinds import open_decoder
from metamorph.errors import Stopped, UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.decoder_stage import DecoderStage
from metamorph.training.decoders.feature_noise import add_noise, draw_noise
from metamorph.training.decoders.one_pass import OnePassTrainer
from metamorph.training.decoders.one_pass_objective import Critic
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from metamorph.training.rules import check_rules
from tests.interruption import interrupt_in_step
from tests.processes import run_processes
from tests.tiny_run import tiny_one_pass_config
from tests.training.test_decoder_parallel import stopped

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return tiny_one_pass_config(tmp_path)


def changed(config: RunConfig, **decoder) -> RunConfig:
    return replace(config, decoder=replace(config.decoder, **decoder))


def pictures(count: int) -> list:
    return [make_task(0, i, "train", {"draw": 1.0}).sample.images[0] for i in range(count)]


def prepared(trainer: OnePassTrainer, images: list) -> PictureBatch:
    squares = (trainer.encoder_square, trainer.square)
    both = [[np.asarray(square(image)) for square in squares] for image in images]
    return PictureBatch(*(torch.from_numpy(np.stack(side)) for side in zip(*both, strict=True)))


def test_the_loss_by_its_definition(config):
    """Of pictures of another size than the encoder's, written out."""
    config = changed(
        config, perceptual_weight=0.7, adversarial_weight=0.3, adversarial_start=2, picture_size=32,
        patch_size=8,
    )  # fmt: skip
    trainer = OnePassTrainer(config)
    three = pictures(3)
    loss, logged = trainer(prepared(trainer, three), Draws(0, 2, range(3)))

    def features(images):
        """Of uint8 pictures that Pillow squashed."""
        values = torch.tensor(np.stack([np.asarray(image) for image in images])) / 255.0
        values = (values - 0.5) / 0.5
        return trainer.vision(values.permute(0, 3, 1, 2))

    own = features(three)
    numbers = Draws(0, 2, range(3))
    noise, lengths = numbers(torch.randn, (3, 4, 24)), numbers(torch.rand, (3, 1, 1))
    seen = own + config.decoder.feature_noise * lengths * noise / 24**0.5
    seen = seen / seen.norm(dim=-1, keepdim=True)
    patches = trainer.vit.decoder(seen).logits.view(3, 4, 4, 8, 8, 3)  # rows, columns, y, x
    drawn = patches.permute(0, 1, 3, 2, 4, 5).reshape(3, 32, 32, 3) / 2 + 0.5
    small = [picture.resize((32, 32), Image.Resampling.LANCZOS) for picture in three]
    wanted = torch.tensor(np.stack([np.asarray(picture) for picture in small])) / 255
    pixel_error = (drawn - wanted).abs().mean()
    assert logged["pixel_error"].item() == pytest.approx(pixel_error.item(), rel=1e-5)

    # Pillow rounds what it resizes to 256 levels.
    shown = (drawn.detach().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    redrawn = features([Image.fromarray(one).resize((64, 64), Image.BICUBIC) for one in shown])
    cosines = (redrawn * own).sum(-1)
    assert logged["feature_error"].item() == pytest.approx(1 - cosines.mean().item(), abs=2e-3)

    taken, refused = trainer.critic.judge(own), trainer.critic.judge(redrawn)
    hinge = ((1 - taken).relu().mean() + (1 + refused).relu().mean()) / 2
    assert logged["critic_error"].item() == pytest.approx(hinge.item(), abs=2e-3)
    assert logged["reproach"].item() == pytest.approx(-refused.mean().item(), abs=2e-3)
    parts = {"pixel_error": 1, "feature_error": 0.7, "critic_error": 1, "reproach": 0.3}
    assert loss.item() == pytest.approx(sum(logged[name].item() * w for name, w in parts.items()))
    early, before = trainer(prepared(trainer, three), Draws(0, 1, range(3)))
    parts["reproach"] = 0  # the critic does not count yet
    assert early.item() == pytest.approx(sum(before[name].item() * w for name, w in parts.items()))


def test_every_part_teaches_whom_it_should(config):
    """The perceptual loss reaches the ViT through the frozen encoder; the critic learns from its
    own error alone, and what it reproaches is learnt by the ViT alone."""
    trainer = OnePassTrainer(changed(config, adversarial_weight=1.0))
    critic = trainer.critic
    drawn = torch.randn(2, 4, 24, requires_grad=True)
    _, reproach = critic(torch.randn(2, 4, 24), drawn)
    assert reproach.item() == pytest.approx(-critic.judge(drawn).mean().item())
    reproach.backward()
    [expected] = torch.autograd.grad(-critic.judge(drawn).mean(), drawn)
    torch.testing.assert_close(drawn.grad, expected)
    for parameter in critic.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), atol=1e-6, rtol=0)
    drawn.grad = None
    error, _ = critic(torch.randn(2, 4, 24), drawn)
    error.backward()
    assert not drawn.grad.any()
    assert all(parameter.grad.any() for parameter in critic.parameters())

    def gradient(**weights):
        trainer = OnePassTrainer(changed(config, **weights))
        loss, _ = trainer(prepared(trainer, pictures(2)), Draws(0, 0, range(2)))
        loss.backward()
        assert all(parameter.grad is None for parameter in trainer.vision.parameters())
        assert all(parameter.grad is not None for parameter in trainer.vit.parameters())
        return trainer.vit.decoder.decoder_pred.weight.grad

    plain, looking = gradient(perceptual_weight=0.0), gradient(perceptual_weight=1.0)
    assert not torch.allclose(plain, looking)
    assert not torch.allclose(looking, gradient(adversarial_weight=1.0))


def test_noise_keeps_unit_length_and_is_drawn_for_each_picture():
    features = torch.nn.functional.normalize(torch.randn(200, 9, 64), dim=-1)
    noise = draw_noise(features.shape, 0.5, Draws(0, 0, range(200)))
    noisy = add_noise(features, noise)
    torch.testing.assert_close(noisy.norm(dim=-1), torch.ones(200, 9))
    cosines = (noisy * features).sum(-1)
    assert cosines.std(dim=1).mean() < 0.02  # one length for all tokens of a picture
    assert cosines.mean(1).std() > 0.02  # another one for each
    # Uniform in 0 to 0.5: what is left of the mean is E[1 / sqrt(1 + s^2)] = 2 asinh(0.5).
    assert cosines.mean().item() == pytest.approx(2 * np.arcsinh(0.5), abs=0.01)
    assert cosines.mean(1).min() == pytest.approx(1 / 1.25**0.5, abs=0.02)
    assert cosines.mean(1).max() > 0.999
    # Whoever computes a picture draws the same for it.
    torch.testing.assert_close(
        draw_noise((10, 9, 64), 0.5, Draws(0, 0, range(50, 60))), noise[50:60]
    )
    assert not torch.equal(draw_noise(features.shape, 0.5, Draws(0, 1, range(200))), noise)


def test_a_critic_tells_pictures_from_drawings():
    torch.manual_seed(0)
    critic = Critic(16)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    real, drawn = torch.randn(2, 8, 4, 16).unbind()
    real, drawn = (torch.nn.functional.normalize(x + 1, dim=-1) for x in (real, drawn - 2))
    for _ in range(50):
        critic(real, drawn)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert critic.judge(real).mean() > 0.9 and critic.judge(drawn).mean() < -0.9


def test_it_learns_to_draw(config):
    """A few pictures by heart; and saves what draws them."""
    config.data.samples = 4
    config.training.steps, config.training.learning_rate = 15, 1e-2
    config.training.log_every = config.training.checkpoint_every = 15
    config = changed(config, feature_noise=0.0, perceptual_weight=0.1)
    stage = DecoderStage(config, CPU)
    first = stage.forward_backward(0)["pixel_error"].item()
    folder = train(config)
    [last] = read_metrics(Path(config.output))
    decoder = open_decoder(folder)
    with torch.no_grad():
        seen = stage.module.vision(stage.module.vision.preprocess(four := pictures(4)))
    drawn = np.stack([np.asarray(picture, np.float32) for picture in decoder.draw(seen)])
    wanted = np.stack([np.asarray(picture, np.float32) for picture in four])
    assert abs(drawn - wanted).mean() / 255 < 0.8 * first
    assert last["feature_error"] > 0 and "critic_error" not in last


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "vit/diffusion_pytorch_model.safetensors")


def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, monkeypatch):
    """With its critic, which is no part of the decoder."""
    config = changed(config, adversarial_weight=0.1, adversarial_start=3)
    whole = trained(train(replace(config, output=str(tmp_path / "whole"))))
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 4)
        with pytest.raises(Stopped, match="step 4 of 6"):
            train(config)
    resumed = trained(train(replace(config, resume=True)))
    assert not any("critic" in name for name in whole)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on_alone(config, tmp_path):
    config = changed(config, adversarial_weight=0.1)
    whole = trained(train(config))
    parts = replace(config, output=str(tmp_path / "parts"))
    assert run_processes(2, stopped, parts, 1) == ["step 4 of 6"] * 2
    resumed = trained(train(replace(parts, resume=True)))
    for name in ("pixel_error", "feature_error", "critic_error"):
        one, other = (
            [line[name] for line in read_metrics(Path(run.output))] for run in (config, parts)
        )
        assert other == pytest.approx(one, rel=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4)


def test_parts_of_a_step_and_recomputation_change_nothing(config):
    config = changed(config, adversarial_weight=0.1)

    def gradients(config):
        stage = DecoderStage(config, CPU)
        losses = stage.forward_backward(0)
        return losses, [p.grad for p in stage.module.parameters() if p.requires_grad]

    losses, expected = gradients(config)
    sparing = changed(config, accumulate=2)
    sparing.training = replace(config.training, activation_checkpointing="full")
    found, others = gradients(sparing)
    for name, value in losses.items():
        torch.testing.assert_close(found[name], value)
    for one, other in zip(expected, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 3}, "decoder.heads: 3 do not divide decoder.width, 16"),
        ({"width": 18, "heads": 3}, "decoder.width: expected a multiple of 4, .* got 18"),
        ({"patch_size": 24}, "decoder.patch_size: 24 does not divide decoder.picture_size, 64"),
        ({"adversarial_start": 5}, "decoder.adversarial_start: it needs .*adversarial_weight"),
        ({"base": "runs/base"}, "decoder.base: decoder.kind rae does not use it"),
        ({"condition_dropout": 0.1}, "condition_dropout: decoder.kind rae does not use it"),
    ],
)
def test_keys_that_do_not_fit(config, values, message):
    with pytest.raises(UserError, match=message):
        check_rules(changed(config, **values), CPU)


def test_its_keys_are_refused_for_diffusion(config):
    config.decoder = DecoderConfig(layers=3)
    with pytest.raises(UserError, match=r"decoder.layers: decoder.kind diffusion .* \(only rae\)"):
        check_rules(config, CPU)


def test_patches_must_not_lose_tokens(config):
    with pytest.raises(UserError, match="patches of 64 make 1 x 1 .* fewer than its 2 x 2 tokens"):
        OnePassTrainer(changed(config, patch_size=64))
