"""Rebuilds the small pretrained parts that the quickstart starts from: `make toy-assets`.

A real run takes a pretrained SigLIP and a pretrained Stable Diffusion, which have seen the world;
the toy run takes these in their place, which have seen every combination. What the quickstart
trains on top of them never sees the held-out ones.

* `encoder`: a SigLIP vision tower (64 px, patch 8) that learns to name attributes and to keep
  what is needed to redraw the picture;
* `decoder_base`: a VAE and a UNet in diffusers' layout. Like Stable Diffusion's, this UNet has
  seen words (here: a row of attribute embeddings) and never image features.

`decoder_rae` beside them is a whole one-pass decoder, of `configs/toy/decoder_rae.yaml`, which the
quickstart shows beside its own; it has not seen the held-out combinations. To train it takes eight
minutes of one core more.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import SiglipVisionConfig

from metamorph.data.toy.scenes import (
    COLOURS,
    COUNT_WORDS,
    IMAGE_SIZE,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    random_count_scene,
    random_scene,
    render,
    zoom,
)
from metamorph.model.siglip import SiglipEncoder
from metamorph.quickstart.one_pass_asset import build_one_pass_decoder

ASSETS = Path(__file__).parent / "assets"
GRID = 4  # 4 x 4 visual tokens a picture
VOCABULARY = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "count": tuple(COUNT_WORDS),
}
TOKEN_WORDS = ("shape", "colour", "size")  # of each token that sees a shape
WORD_SCALE = 10.0
SHAPE_WEIGHT = 5.0  # of an error of the VAE on a shape, beside 1 everywhere
PICTURES = 8192
SEED = 0


def scene_pictures(count: int) -> tuple[list[Scene], list[bool], list[Image.Image]]:
    """Scenes of every combination, whether each picture is a close-up, and the pictures."""
    rng = random.Random(SEED)
    scenes, zoomed, pictures = [], [], []
    for _ in range(count):
        split, kind = rng.choices(SPLITS, (5, 1))[0], rng.random()
        scene = random_count_scene(rng, split) if kind < 0.25 else random_scene(rng, split)
        close_up = kind > 0.9
        scenes.append(scene)
        zoomed.append(close_up)
        pictures.append(zoom(scene) if close_up else render(scene))
    return scenes, zoomed, pictures


def labels(scenes: list[Scene]) -> Tensor:
    """[scenes, attributes]: index of each attribute's value."""
    return torch.tensor(
        [[VOCABULARY[name].index(getattr(s, name)) for name in VOCABULARY] for s in scenes]
    )


def batches(count: int, steps: int, batch_size: int):
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        yield torch.randint(count, (batch_size,), generator=generator)


def train(name: str, parameters, loss_of, indices, steps: int, learning_rate: float) -> None:
    """AdamW with a one-cycle schedule over `loss_of(rows) -> loss`."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05
    )
    bar = tqdm(indices, total=steps, desc=name, mininterval=5)
    for rows in bar:
        loss = loss_of(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


class Probes(nn.Module):
    """What the encoder is asked for: words, each token's own pixels, each token's place.

    Tokens that see a shape must point towards the words for it, on the unit sphere and at a fixed
    scale, as in contrastive training: what words can say then makes up much of a feature.
    """

    def __init__(self, width: int):
        super().__init__()
        side = IMAGE_SIZE // GRID
        self.words = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(len(VOCABULARY[name]), width)) for name in TOKEN_WORDS}
        )
        self.picture = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, len(values)))
                for name, values in VOCABULARY.items()
            }
        )
        self.pixels = nn.Sequential(
            nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 3 * side * side)
        )
        self.token_place = nn.Linear(width, GRID * GRID)

    def token_logits(self, name: str, tokens: Tensor) -> Tensor:
        return WORD_SCALE * F.normalize(tokens, dim=-1) @ F.normalize(self.words[name], dim=-1).T


def patches(pixels: Tensor) -> Tensor:
    """[B, 3, 64, 64] to the pixels under each visual token [B, 16, 768]."""
    side = IMAGE_SIZE // GRID
    return F.unfold(pixels, side, stride=side).transpose(1, 2)


def on_shape(pixels: Tensor) -> Tensor:
    """[B, 1, 64, 64]: 1 where a pixel differs from the ground, else 0."""
    ground = pixels[:, :, :1, :1]
    return ((pixels - ground).abs().amax(1, keepdim=True) > 0.3).float()


def sees_shape(pixels: Tensor) -> Tensor:
    """[B, 16]: does an eighth of the pixels under a token differ from the ground?"""
    return patches(on_shape(pixels)).mean(-1) > 1 / 8


def probe_accuracy(encoder: SiglipEncoder, probes: Probes, pixels: Tensor, truth: Tensor) -> dict:
    """Share of right answers per attribute."""
    with torch.no_grad():
        pooled = encoder(pixels).amax(1)
        return {
            name: (head(pooled).argmax(-1) == truth[:, column]).float().mean().item()
            for column, (name, head) in enumerate(probes.picture.items())
        }


def held_out_pictures(count: int) -> tuple[list[Scene], list[Image.Image]]:
    rng = random.Random(SEED + 1)
    scenes = [
        random_count_scene(rng, "held_out") if i % 4 == 0 else random_scene(rng, "held_out")
        for i in range(count)
    ]
    return scenes, [render(scene) for scene in scenes]


def build_encoder(folder: Path, steps: int) -> None:
    """Trains the vision tower and writes it in Hugging Face's layout."""
    torch.manual_seed(SEED)
    config = SiglipVisionConfig(
        hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    encoder = SiglipEncoder(config, GRID).requires_grad_(True)
    probes = Probes(config.hidden_size)
    scenes, zoomed, pictures = scene_pictures(PICTURES)
    pixels, truth = encoder.preprocess(pictures), labels(scenes)
    # A close-up no longer tells size, place or count.
    truth[torch.tensor(zoomed), 2:] = -100

    def loss_of(rows: Tensor) -> Tensor:
        tokens = encoder(pixels[rows])  # [B, 16, 96], unit length
        pooled = tokens.amax(1)
        picture_loss = sum(
            F.cross_entropy(head(pooled), truth[rows, column], ignore_index=-100)
            for column, head in enumerate(probes.picture.values())
        )
        seen = sees_shape(pixels[rows])  # [B, 16]
        seen_truth = truth[rows].unsqueeze(1).expand(-1, GRID * GRID, -1)[seen]
        word_loss = sum(
            F.cross_entropy(
                probes.token_logits(name, tokens[seen]), seen_truth[:, column], ignore_index=-100
            )
            for column, name in enumerate(TOKEN_WORDS)
        )
        pixel_loss = F.mse_loss(probes.pixels(tokens), patches(pixels[rows]))
        places = torch.arange(GRID * GRID).expand(len(rows), -1)
        place_loss = F.cross_entropy(probes.token_place(tokens).flatten(0, 1), places.flatten())
        return picture_loss + word_loss + 10 * pixel_loss + 0.3 * place_loss

    parameters = [*encoder.parameters(), *probes.parameters()]
    train("encoder", parameters, loss_of, batches(len(scenes), steps, 96), steps, 1.5e-3)
    unseen, unseen_pictures = held_out_pictures(512)
    accuracy = probe_accuracy(encoder, probes, encoder.preprocess(unseen_pictures), labels(unseen))
    print("attribute accuracy on held-out combinations:", accuracy)
    encoder.save_pretrained(folder)


def build_vae(folder: Path, steps: int) -> AutoencoderKL:
    """Trains a KL autoencoder, 64 x 64 x 3 to 8 x 8 x 4, and writes it in diffusers' layout."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, sample_size=IMAGE_SIZE, mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    _, _, pictures = scene_pictures(PICTURES)
    pixels = to_pixels(pictures)

    def loss_of(rows: Tensor) -> Tensor:
        posterior = vae.encode(pixels[rows]).latent_dist
        difference = vae.decode(posterior.sample()).sample - pixels[rows]
        # Most of a picture is ground: of one number a pixel, black and green differ too little.
        weight = 1 + SHAPE_WEIGHT * on_shape(pixels[rows])
        error = (weight * (difference.abs() + difference**2)).mean()
        return error + 1e-4 * posterior.kl().mean() / 256

    train("vae", list(vae.parameters()), loss_of, batches(len(pictures), steps, 20), steps, 2e-3)
    latents = encode_latents(vae.eval(), pixels[:1024])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    with torch.no_grad():
        error = (vae.decode(latents[:64]).sample - pixels[:64]).abs().mean().item()
    print(f"mean absolute pixel error: {error / 2 * 255:.2f} of 255")
    vae.half().save_pretrained(folder / "vae")
    return vae.float()


def to_pixels(pictures: list[Image.Image]) -> Tensor:
    """[B, 3, 64, 64] in -1 to 1."""
    rows = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures]
    pixels = torch.stack(rows).view(len(pictures), IMAGE_SIZE, IMAGE_SIZE, 3)
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Posterior means [B, 4, 8, 8], not scaled."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(128)])


class Words(nn.Module):
    """Attribute values as a short sequence of embeddings: this world's text encoder."""

    def __init__(self, width: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(len(v), width) for v in VOCABULARY.values())

    def forward(self, truth: Tensor) -> Tensor:
        return torch.stack([table(truth[:, i]) for i, table in enumerate(self.tables)], 1)


def build_unet(folder: Path, vae: AutoencoderKL, steps: int) -> None:
    """Trains a word-conditioned latent UNet with 10% empty conditions; writes UNet, scheduler."""
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(64, 64), norm_num_groups=8, cross_attention_dim=96,
        attention_head_dim=4, mid_block_type="UNetMidBlock2DCrossAttn",
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    print(f"unet: {sum(p.numel() for p in unet.parameters()) / 1e6:.2f}M parameters")
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    words = Words(96)
    scenes, zoomed, pictures = scene_pictures(PICTURES)
    keep = [i for i, close_up in enumerate(zoomed) if not close_up]
    latents = encode_latents(vae, to_pixels([pictures[i] for i in keep]))
    latents = latents * vae.config.scaling_factor
    truth = labels([scenes[i] for i in keep])

    def loss_of(rows: Tensor) -> Tensor:
        clean = latents[rows]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(rows),))
        condition = words(truth[rows]) * (torch.rand(len(rows), 1, 1) > 0.1)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        return F.mse_loss(unet(noisy, timesteps, condition).sample, noise)

    parameters = [*unet.parameters(), *words.parameters()]
    train("unet", parameters, loss_of, batches(len(keep), steps, 64), steps, 1e-3)
    unet.half().save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--encoder-steps", type=int, default=1200)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--unet-steps", type=int, default=2000)
    parser.add_argument("--one-pass-steps", type=int, default=3000)
    arguments = parser.parse_args()
    build_encoder(arguments.output / "encoder", arguments.encoder_steps)
    vae = build_vae(arguments.output / "decoder_base", arguments.vae_steps)
    build_unet(arguments.output / "decoder_base", vae, arguments.unet_steps)
    build_one_pass_decoder(
        arguments.output / "decoder_rae", arguments.output / "encoder", arguments.one_pass_steps
    )


if __name__ == "__main__":
    main()
