"""What training a decoder or its student would need, on any machine, without weights or data.

metamorph train configs/metamorph_8b/decoder.yaml --dry-run --world-size 16
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from metamorph.config import DecoderConfig, RunConfig
from metamorph.costs.decoder_flops import UNET, diffusion_flops
from metamorph.costs.hardware import ASSUMED, Gpu
from metamorph.costs.memory import decoder_bytes
from metamorph.costs.roofline import TERA
from metamorph.costs.sharding import Unit, fake_processes, mesh_shape, units
from metamorph.costs.step import describe_decoder_memory
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.files import check_decoder, check_parts
from metamorph.decoder.parts import unet_blocks
from metamorph.errors import UserError
from metamorph.folders import check_folder
from metamorph.model.describe import describe_parameters
from metamorph.model.outline import outline_encoder, public_sizes
from metamorph.model.weights import read_json
from metamorph.training.lora import UNET_LAYERS, add_adapters
from metamorph.training.parallel import make_mesh, shard_parts, trained_children


class DecoderOutline(nn.Module):
    """The parts that the stage's trainer has, of the same sizes, on the meta device; those too
    whose results are cached."""

    def __init__(self, config: RunConfig):
        super().__init__()
        self.vision, vision_source = outline_encoder(config.model)
        self.is_student = config.stage == "distill"
        sizes, source = (_teacher_sizes if self.is_student else _base_sizes)(config.decoder)
        self.sources = [vision_source, source]
        with torch.device("meta"):
            self.vae = AutoencoderKL.from_config(sizes["vae"]).requires_grad_(False)
            self.unet = UNet2DConditionModel.from_config(sizes["unet"])
            if self.is_student:
                self.adapter = FeatureAdapter.from_config(sizes["adapter"]).requires_grad_(False)
                self.teacher = UNet2DConditionModel.from_config(sizes["unet"])
                self.teacher.requires_grad_(False)
            else:
                self.adapter = FeatureAdapter(
                    self.vision.width, config.decoder.adapter_hidden,
                    self.unet.config.cross_attention_dim, config.decoder.condition_length,
                )  # fmt: skip
        if config.training.lora_rank:
            add_adapters(self.unet, config, UNET_LAYERS)

    def shared(self, config: RunConfig, world_size: int) -> list[Unit]:
        """What the processes of a run gather together; they share the weights from now on."""
        with fake_processes(world_size):
            if mesh_shape(world_size, config.parallel.shard)[1] > 1:
                trained = trained_children(self)
                frozen = [part for part in self.children() if part not in trained]
                mesh = make_mesh(config.parallel.shard, torch.device("cpu"))
                shard_parts(self, unet_blocks(self.unet), frozen, mesh=mesh)
            return units(self)


def _base_sizes(settings: DecoderConfig) -> tuple[dict[str, dict], str]:
    """Configs by the name of the part, and where they are from."""
    folder = Path(settings.base)
    if folder.is_dir():
        check_parts(folder)
        return _sizes(folder, "unet", "vae"), f"sizes of decoder.base, {folder}"
    sizes = public_sizes("decoder.base", settings.base)
    return sizes, f"decoder.base, {folder}, is not there: public sizes of {folder.name}"


def _teacher_sizes(settings: DecoderConfig) -> tuple[dict[str, dict], str]:
    folder = check_folder(settings.teacher, "decoder.teacher")
    check_decoder(folder)
    return _sizes(folder, "unet", "vae", "adapter"), f"sizes of decoder.teacher, {folder}"


def _sizes(folder: Path, *names: str) -> dict[str, dict]:
    return {name: read_json(folder / name / "config.json") for name in names}


def plan_decoder(config: RunConfig, world_size: int, gpu: Gpu) -> str:
    """The plan of a decoder run on `world_size` GPUs, in text. `check_plan` comes before."""
    if config.decoder.kind == "rae":
        raise UserError(
            "decoder.kind: a plan for other GPUs needs diffusion, got rae; leave --world-size out"
        )
    training, pictures = config.training, config.decoder.batch_size // world_size
    model = DecoderOutline(config)
    parts = diffusion_flops(config, model.unet, model.adapter, model.vae, model.vision)
    if config.data.features:
        del model.vision
    if config.decoder.latents:
        del model.vae
    replicas, sharing = mesh_shape(world_size, config.parallel.shard)
    parameters = describe_parameters(model, config.stage)
    memory = decoder_bytes(model.shared(config, world_size), config)
    head = (
        f"plan of stage {config.stage} on {world_size} x {gpu.name}: {replicas} copies of the "
        f"weights, each shared by {sharing}"
    )
    at_once = pictures // config.decoder.accumulate
    total = sum(part.total for part in parts.values())
    if training.activation_checkpointing == "full":  # its forward is computed again
        total += parts[UNET].forward
    rate = TERA * gpu.teraflops[config.training.precision] * ASSUMED.encoder / total
    flops = [f"teraflops of a picture{'':<2}{'forward':>12}{'backward':>12}"]
    flops += [
        f"  {name:<22}{part.forward / TERA:>12.4g}{part.backward / TERA:>12.4g}"
        for name, part in parts.items()
    ]
    return "\n\n".join([
        "\n".join([
            head,
            f"  {pictures} pictures on each, {at_once} at a time",
            "  a prediction: nothing here was measured, nothing is trained or written",
            *(f"  {source}" for source in model.sources),
        ]),
        parameters,
        "\n".join(flops),
        describe_decoder_memory(memory),
        f"predicted at most {rate:.1f} pictures/s/GPU, {pictures / rate:.2f} s a step: "
        f"{ASSUMED.encoder:.0%} of {gpu.teraflops[config.training.precision]:g} TFLOP/s "
        f"(a guess; {gpu.source}), communication hidden",
    ])  # fmt: skip
