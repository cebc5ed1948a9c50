"""The memory that a decoder's plan says, against the bytes of the tensors of a real step."""

from dataclasses import replace

import torch

from metamorph.config import DecoderConfig, ParallelConfig, RunConfig
from metamorph.costs.memory import decoder_bytes
from metamorph.data.encode import encode
from metamorph.data.mixture import parts_of
from metamorph.data.opening import open_source
from metamorph.model.opening import open_encoder
from metamorph.planning.decoder_outlines import outline_decoder
from metamorph.processes import process_group
from metamorph.training.decoder_stage import DecoderStage
from metamorph.training.parallel import local_part
from tests.processes import run_processes
from tests.tiny_run import decoder_config, tiny_decoder, tiny_one_pass_config

CPU = torch.device("cpu")


def held(tensors) -> int:
    """Bytes of what this process holds of them."""
    own = [local_part(tensor) for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def states_of_a_step(*configs: RunConfig) -> list[dict[str, int]]:
    found = []
    with process_group(CPU):
        for config in configs:
            stage = DecoderStage(config, CPU)
            stage.forward_backward(0)
            stage.optimizer.step()
            weights = list(stage.module.parameters())
            states = stage.optimizer.state.values()
            found.append({
                "weights": held(weights),
                "gradients": held(weight.grad for weight in weights if weight.grad is not None),
                "optimizer states": held(s[name] for s in states for name in s if name != "step"),
                "moving average": held(stage.average.averages.values()),
            })  # fmt: skip
    return found


def planned(config: RunConfig, processes: int) -> dict[str, float]:
    parts = decoder_bytes(outline_decoder(config).shared(config, processes), config)
    return {name: parts[name] for name in (*list(parts)[:3], "moving average")}


def test_weights_and_their_averages_of_whole_copies_and_shards(folder):
    """Of a decoder, also where adapters alone are trained, of a student beside its teacher, and of
    one that draws in one pass, with its critic, or of cached features by their pixels alone."""
    config = decoder_config(folder)
    config.decoder = replace(config.decoder, ema_decay=0.99, condition_dropout=0.0)
    copies, shards = (replace(config, parallel=ParallelConfig(shard=shard)) for shard in (1, 0))
    adapted = replace(shards, training=replace(config.training, lora_rank=2))
    tiny_decoder().save_pretrained(folder / "teacher")
    student = replace(shards, stage="distill")
    student.decoder = DecoderConfig(
        teacher=str(folder / "teacher"), batch_size=4, sampling_steps=2, ema_decay=0.9
    )
    one_pass = replace(shards, decoder=tiny_one_pass_config(folder).decoder)
    one_pass.decoder = replace(one_pass.decoder, adversarial_weight=0.1, ema_decay=0.9)
    pixels = replace(one_pass.decoder, adversarial_weight=0.0, perceptual_weight=0.0)
    one_pass.data = replace(one_pass.data, samples=4)
    parts = parts_of(open_source(one_pass.data, 0, words=False))
    encode(parts, open_encoder(one_pass.model), folder / "features", "fp16")
    cached = replace(one_pass, decoder=pixels)
    cached.data = replace(one_pass.data, features=str(folder / "features"))
    configs = (copies, shards, adapted, student, one_pass, cached)
    first, second = run_processes(2, states_of_a_step, *configs)
    for run, one, other in zip(configs, first, second, strict=True):
        assert planned(run, 2) == one, run
        assert all(other[name] <= one[name] for name in one)
    assert first[1]["moving average"] < 0.6 * first[0]["moving average"]
    assert states_of_a_step(config) == [planned(config, 1)] == first[:1]
    config.decoder.ema_decay = 0.0
    assert "moving average" not in decoder_bytes(outline_decoder(config).shared(config, 1), config)
