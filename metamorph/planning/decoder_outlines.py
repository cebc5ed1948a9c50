"""What the trainer of a decoder has, of the same sizes and without memory, to plan with."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from metamorph.config import DecoderConfig, RunConfig
from metamorph.costs.decoder_flops import UNET, VIT, diffusion_flops, one_pass_flops
from metamorph.costs.flops import Flops
from metamorph.costs.sharding import Unit, fake_processes, mesh_shape, units
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.files import check_decoder, check_parts
from metamorph.decoder.parts import unet_blocks
from metamorph.decoder.vit_decoder import vit_decoder
from metamorph.folders import check_folder
from metamorph.model.outline import outline_encoder, public_sizes
from metamorph.model.weights import read_json
from metamorph.training.decoders.one_pass_objective import Critic
from metamorph.training.decoders.one_pass_rules import check_patches
from metamorph.training.decoders.student_rules import with_guidance
from metamorph.training.lora import UNET_LAYERS, add_adapters
from metamorph.training.parallel import make_mesh, shard_parts, trained_children


class DecoderOutline(nn.Module):
    """The parts that a stage's trainer has, on the meta device, but for those whose results are
    cached.

    Attributes:
        flops: of a picture, by part.
        repeated: the part that is computed again where activations are not kept.
        sources: where the sizes are from, a line each.
    """

    flops: dict[str, Flops]
    repeated: str
    sources: list[str]

    def blocks(self) -> list[nn.Module]:
        """The parts that are gathered alone where weights are shared."""
        raise NotImplementedError

    def shared(self, config: RunConfig, world_size: int) -> list[Unit]:
        """What the processes of a run gather together; they share the weights from now on."""
        with fake_processes(world_size):
            if mesh_shape(world_size, config.parallel.shard)[1] > 1:
                trained = trained_children(self)
                frozen = [part for part in self.children() if part not in trained]
                mesh = make_mesh(config.parallel.shard, torch.device("cpu"))
                shard_parts(self, self.blocks(), frozen, mesh=mesh)
            return units(self)


class DiffusionOutline(DecoderOutline):
    """Of a UNet, or of a student beside its teacher."""

    repeated = UNET

    def __init__(self, config: RunConfig):
        super().__init__()
        self.vision, vision_source = outline_encoder(config.model)
        is_student = config.stage == "distill"
        if is_student:
            sizes, source, guidance_scale = _teacher_sizes(config.decoder)
            config = with_guidance(config, guidance_scale)
        else:
            sizes, source = _base_sizes(config.decoder)
        self.sources = [vision_source, source]
        with torch.device("meta"):
            self.vae = AutoencoderKL.from_config(sizes["vae"]).requires_grad_(False)
            self.unet = UNet2DConditionModel.from_config(sizes["unet"])
            if is_student:
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
        self.flops = diffusion_flops(config, self.unet, self.adapter, self.vae, self.vision)
        if config.data.features:
            del self.vision
        if config.decoder.latents:
            del self.vae

    def blocks(self) -> list[nn.Module]:
        return unet_blocks(self.unet)


class OnePassOutline(DecoderOutline):
    """Of a ViT that decodes in one pass. Features that are cached spare no encoder: it looks at
    drawings, at the latest when they are validated."""

    repeated = VIT

    def __init__(self, config: RunConfig):
        super().__init__()
        decoder = config.decoder
        self.vision, source = outline_encoder(config.model)
        self.sources = [source]
        check_patches(decoder, self.vision.grid)
        looks_again = bool(decoder.perceptual_weight or decoder.adversarial_weight)
        with torch.device("meta"):
            self.vit = vit_decoder(
                self.vision.width, width=decoder.width, layers=decoder.layers,
                heads=decoder.heads, picture_size=decoder.picture_size,
                patch_size=decoder.patch_size,
            )  # fmt: skip
            if decoder.adversarial_weight:
                self.critic = Critic(self.vision.width)
        self.flops = one_pass_flops(config, self.vit, self.vision, looks_again)

    def blocks(self) -> list[nn.Module]:
        return list(self.vit.decoder.decoder_layers)


def outline_decoder(config: RunConfig) -> DecoderOutline:
    """Of the decoder that a run trains. Raises `UserError` for sizes that do not fit or that nobody
    knows."""
    return (OnePassOutline if config.decoder.kind == "rae" else DiffusionOutline)(config)


def _base_sizes(settings: DecoderConfig) -> tuple[dict[str, dict], str]:
    """Configs by the name of the part, and where they are from."""
    folder = Path(settings.base)
    if folder.is_dir():
        check_parts(folder)
        return _sizes(folder, "unet", "vae"), f"sizes of decoder.base, {folder}"
    sizes = public_sizes("decoder.base", settings.base)
    return sizes, f"decoder.base, {folder}, is not there: public sizes of {folder.name}"


def _teacher_sizes(settings: DecoderConfig) -> tuple[dict[str, dict], str, float]:
    """The same, and the guidance that it was saved with."""
    folder = check_folder(settings.teacher, "decoder.teacher")
    own = check_decoder(folder)
    sizes = _sizes(folder, "unet", "vae", "adapter")
    return sizes, f"sizes of decoder.teacher, {folder}", own.guidance_scale


def _sizes(folder: Path, *names: str) -> dict[str, dict]:
    return {name: read_json(folder / name / "config.json") for name in names}
