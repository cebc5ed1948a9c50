"""What training the decoder would need, planned on any machine, without weights or data.

metamorph train configs/metamorph_8b/decoder.yaml --dry-run --world-size 16
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metamorph.config import RunConfig
from metamorph.costs.flops import ENCODER, Flops, encoder_flops
from metamorph.costs.hardware import ASSUMED, Gpu
from metamorph.costs.memory import state_bytes
from metamorph.costs.roofline import TERA
from metamorph.costs.sharding import units
from metamorph.costs.step import GIBI
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.parts import check_parts
from metamorph.model.describe import describe_parameters
from metamorph.model.outline import outline_encoder, public_sizes
from metamorph.model.weights import read_json


class DecoderOutline(nn.Module):
    """The parts that `DecoderTrainer` has, of the same sizes, on the meta device."""

    def __init__(self, config: RunConfig):
        super().__init__()
        base, settings = config.decoder.base, config.decoder
        if Path(base).is_dir():
            check_parts(Path(base))
            sizes = {name: read_json(Path(base) / name / "config.json") for name in ("unet", "vae")}
            source = f"sizes of decoder.base, {base}"
        else:
            sizes = public_sizes("decoder.base", base)
            source = f"decoder.base, {base}, is not there: public sizes of {Path(base).name}"
        self.vision, vision_source = outline_encoder(config.model)
        self.sources = [vision_source, source]
        with torch.device("meta"):
            self.vae = AutoencoderKL.from_config(sizes["vae"]).requires_grad_(False)
            self.unet = UNet2DConditionModel.from_config(sizes["unet"])
            self.adapter = FeatureAdapter(
                self.vision.width, settings.adapter_hidden, self.unet.config.cross_attention_dim,
                settings.condition_length,
            )  # fmt: skip

    def flops(self, condition_dropout: float) -> dict[str, Flops]:
        """Of one picture, by torch's counter on tensors without memory; the encoder by formula.

        Pictures whose condition is dropped are never encoded.
        """
        unet, width = self.unet.config, self.vision.width
        side = unet.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        with torch.device("meta"):
            pixels = torch.empty(1, 3, side, side)
            noisy = torch.empty(1, unet.in_channels, unet.sample_size, unet.sample_size)
            features = torch.empty(1, self.vision.tokens_per_image, width)
        _, vae = _count(lambda: self.vae.encode(pixels))
        timestep = torch.zeros(1, device="meta")
        noise, forward = _count(lambda: self.unet(noisy, timestep, self.adapter(features)).sample)
        _, backward = _count(lambda: noise.sum().backward())
        images = 1 - condition_dropout
        return {
            "unet and adapter": Flops(forward, backward),
            "vae": Flops(vae),
            ENCODER: encoder_flops(self.vision.config, images, len(self.vision.tokens_read)),
        }


def _count(function):
    counter = FlopCounterMode(display=False)
    with counter:
        result = function()
    return result, counter.get_total_flops()


def plan_decoder(config: RunConfig, world_size: int, gpu: Gpu) -> str:
    """The plan of a decoder run on `world_size` GPUs with whole copies of the weights, in text.

    `check_plan` comes before.
    """
    pictures = config.decoder.batch_size // world_size
    model = DecoderOutline(config)
    parts = model.flops(config.decoder.condition_dropout)
    states = state_bytes(units(model), config.training)
    total = sum(part.total for part in parts.values())
    rate = TERA * gpu.teraflops[config.training.precision] * ASSUMED.encoder / total
    flops = [f"teraflops of a picture{'':<2}{'forward':>12}{'backward':>12}"]
    flops += [
        f"  {name:<22}{part.forward / TERA:>12.4g}{part.backward / TERA:>12.4g}"
        for name, part in parts.items()
    ]
    memory = ["memory of a GPU, estimated (GiB), without activations"]
    memory += [f"  {name:<36}{size / GIBI:>10.3f}" for name, size in states.items()]
    return "\n\n".join([
        "\n".join([
            f"plan of stage decoder on {world_size} x {gpu.name}, {pictures} pictures on each",
            "  a prediction: nothing here was measured, nothing is trained or written",
            *(f"  {source}" for source in model.sources),
        ]),
        describe_parameters(model, config.stage),
        "\n".join(flops),
        "\n".join(memory),
        f"predicted at most {rate:.1f} pictures/s/GPU, {pictures / rate:.2f} s a step: "
        f"{ASSUMED.encoder:.0%} of {gpu.teraflops[config.training.precision]:g} TFLOP/s "
        f"(a guess; {gpu.source}), communication hidden",
    ])  # fmt: skip
