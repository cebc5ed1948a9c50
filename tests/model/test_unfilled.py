"""Modules of parameters without values."""

import torch
from torch import nn

from metamorph.model.unfilled import unfilled


def test_parameters_have_shapes_and_no_values():
    with unfilled():
        module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 5), nn.LayerNorm(5))
        nn.init.trunc_normal_(tensor=module[1].weight)
    filled = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 5), nn.LayerNorm(5))
    assert all(parameter.is_meta for parameter in module.parameters())
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (module, filled)]
    assert shapes[0] == shapes[1]


def test_outside_values_are_filled_as_ever():
    with unfilled():
        pass
    assert torch.equal(nn.init.ones_(torch.empty(2)), torch.ones(2))
    assert not nn.Linear(2, 2).weight.is_meta
