"""The learning rate of each part of the model, and the clip of gradients."""

import pytest
import torch

from metamorph.model.opening import open_model
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.checkpoint_tensors import init_optimizer, set_rate
from metamorph.training.loop import train
from metamorph.training.optimizer import make_optimizer
from metamorph.training.parallel import clip_gradients
from metamorph.training.trainable import choose_trainable
from tests.tiny_run import tiny_config

FACTORS = {
    "projector_rate_factor": 4.0,
    "vision_head_rate_factor": 0.5,
    "language_rate_factor": 0.0,
}


@pytest.fixture
def model(folder):
    """A model whose three parts are trained, with gradients of 1."""
    model, _ = open_model(tiny_config(folder, "instruct"))
    choose_trainable(model, "instruct")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return model


def test_each_part_of_the_model_moves_by_its_own_rate(folder, model):
    """The first step of AdamW moves every weight by the rate, against the sign of its gradient."""
    config = tiny_config(folder, "instruct", **FACTORS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, config)
    set_rate(optimizer, 0.1)
    optimizer.step()
    moves = {"projector": 0.4, "vision_head": 0.05, "language": 0.0, "vision": 0.0}
    for name, value in model.state_dict().items():
        expected = torch.full_like(value, moves[name.partition(".")[0]])
        torch.testing.assert_close(before[name] - value, expected, rtol=1e-4, atol=1e-6)


def test_every_part_has_its_weight_decay_too(folder, model):
    """Of matrices outside the embeddings, as without factors."""
    config = tiny_config(folder, "instruct", weight_decay=0.3, **FACTORS)
    optimizer = make_optimizer(model, config)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert decay.keys() == set(trained.values())
    for name, parameter in trained.items():
        is_table = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        assert decay[parameter] == (0.0 if parameter.ndim < 2 or is_table else 0.3), name


def test_an_optimizer_that_is_filled_from_a_checkpoint_keeps_its_rates(folder, model):
    optimizer = make_optimizer(model, tiny_config(folder, "instruct", **FACTORS))
    set_rate(optimizer, 0.1)
    init_optimizer(optimizer)
    assert {group["lr"] for group in optimizer.param_groups} == {0.4, 0.05, 0.0}


def test_own_rates_are_logged_beside_the_one_they_follow(folder):
    config = tiny_config(folder, "align", steps=2, projector_rate_factor=3.0)
    train(config)
    for line in read_metrics(folder / "align"):
        assert line["learning_rate_projector"] == pytest.approx(3 * line["learning_rate"])
        assert "learning_rate_language" not in line


@pytest.mark.parametrize(("limit", "after"), [(0.5, 0.5), (0.0, 10.0), (99.0, 10.0)])
def test_gradients_are_clipped_to_a_norm_or_with_0_not_at_all(limit, after):
    """Their norm is measured in any case."""
    module = torch.nn.ModuleDict({"projector": torch.nn.Linear(3, 3, bias=False)})
    weight = module["projector"].weight
    weight.grad = torch.full_like(weight, 10 / 3)
    norms = clip_gradients(module, limit)
    torch.testing.assert_close(norms["gradient_norm"], torch.tensor(10.0))
    torch.testing.assert_close(norms["gradient_norm_projector"], torch.tensor(10.0))
    torch.testing.assert_close(weight.grad.norm(), torch.tensor(after))


def test_a_run_without_a_clip(folder):
    train(tiny_config(folder, "instruct", steps=2, gradient_clip=0.0))
    assert all(line["gradient_norm"] > 0 for line in read_metrics(folder / "instruct"))
