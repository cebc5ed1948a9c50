"""A predicted step: by hand where that is possible, and beside a published one."""

import pytest
import torch

from metamorph.config import ModelConfig, TrainingConfig
from metamorph.costs.flops import (
    ATTENTION,
    PROJECTIONS,
    TEXT_HEAD,
    Flops,
    Workload,
    causal_pairs,
    language_flops,
    repeated_flops,
    trained_parts,
)
from metamorph.costs.hardware import ASSUMED, GPUS, PUBLISHED, Efficiency, Gpu
from metamorph.costs.memory import Widths, block_bytes, state_bytes
from metamorph.costs.roofline import (
    ACTIVATION_PASSES,
    Prediction,
    communication_seconds,
    compute_seconds,
    memory_seconds,
)
from metamorph.costs.sharding import Traffic, fake_processes, traffic, units
from metamorph.model.outline import outline
from metamorph.training.parallel import make_mesh, shard
from metamorph.training.trainable import choose_trainable

CPU = torch.device("cpu")

GPU = Gpu("made up", {"fp32": 1, "bf16": 10, "fp8": 20}, 1, 1000, 100, 10, "")
ALL = Efficiency(products=1, attention=1, encoder=1, memory=1, links=1)
PARTS = {
    PROJECTIONS: Flops(20e12, 40e12),
    ATTENTION: Flops(10e12, 20e12),
    TEXT_HEAD: Flops(5e12, 5e12),
}


@pytest.mark.parametrize(("precision", "products"), [("fp32", 70), ("bf16", 7), ("fp8", 3 + 1)])
def test_float8_speeds_up_the_projections_alone(precision, products):
    seconds = compute_seconds(PARTS, 15e12, Flops(30e12), precision, GPU, ALL)
    scale = 10 if precision == "fp32" else 1
    assert seconds == {"products": products, "attention": 4.5 * scale, "encoder": 3 * scale}


def test_what_is_computed_again_takes_its_time():
    """15 teraflops are the attention's; 20 more are the projections' forward."""
    seconds = compute_seconds(PARTS, 35e12, Flops(0), "bf16", GPU, ALL)
    assert seconds["products"] == 9 and seconds["attention"] == 4.5


@pytest.mark.parametrize(
    ("replicas", "shard", "expected"),
    [
        (1, 8, (3, 0)),  # inside a node: 300 GB at 100 GB/s
        (2, 4, (3, 0.5)),  # copies beside each other in the node
        (4, 8, (3, 5)),  # copies in other nodes: 50 GB at 10 GB/s
        (1, 32, (3.75, 0)),  # eight network cards share 300 GB, 10 GB/s each
    ],
)
def test_links(replicas, shard, expected):
    sent = Traffic(100e9, 200e9, 50e9 * (replicas > 1))
    seconds = communication_seconds(sent, replicas, shard, GPU, ALL)
    assert (seconds["sharing"], seconds["replicas"]) == expected


@pytest.mark.parametrize(("sharing", "step"), [(1, 10 + 0.5), (12, 14 + 0.5)])
def test_communication_hides_behind_compute(sharing, step):
    assert Prediction(4, 3, 2, 1, sharing, 2, 0.5).step == step


def test_assumed_shares_give_what_others_publish_within_a_tenth():
    """Llama 3.1 8B on 8 H100s, two texts of 8192 tokens a GPU, every token predicted."""
    model, _ = outline(ModelConfig(
        language="Llama-3.1-8B-Instruct", vision="siglip-so400m-patch14-384"
    ))  # fmt: skip
    choose_trainable(model, "language")
    with fake_processes(8):
        shard(model, model, mesh=make_mesh(0, CPU))
        found = units(model)
    training, tokens, gpu = TrainingConfig(precision="bf16"), 2 * 8192, GPUS["h100"]
    work = Workload(tokens, 2 * causal_pairs([8192]), tokens)
    flops = language_flops(model.config, work, trained_parts(model))
    sent = traffic(found, 1, 8, 1, 2, 4)
    kept = block_bytes(model.config.language, "none", Widths.of(training, True), True)
    moved = ACTIVATION_PASSES * tokens * model.config.language.num_hidden_layers * kept
    updated = 2 * sum(state_bytes(found, training).values())
    prediction = Prediction(
        **compute_seconds(
            flops, repeated_flops(flops, "selective"), Flops(0), "bf16", gpu, ASSUMED
        ),
        **communication_seconds(sent, 1, 8, gpu, ASSUMED),
        activations=memory_seconds(moved, gpu, ASSUMED),
        optimizer=memory_seconds(updated, gpu, ASSUMED),
    )  # fmt: skip
    assert tokens / prediction.step == pytest.approx(PUBLISHED, rel=0.1)
