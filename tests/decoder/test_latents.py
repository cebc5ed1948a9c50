"""What a base's VAE makes of pictures, and which VAE it is."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from metamorph.decoder.latents import VaeEncoder, latent_square, posterior, vae_identity
from metamorph.errors import UserError
from tests.tiny_run import tiny_diffusion


def test_the_posterior_is_that_of_diffusers_own_preprocessing():
    vae, unet, _ = tiny_diffusion()
    square = latent_square(vae, unet.config.sample_size, "squash")
    assert square.side == 64
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    picture = Image.fromarray(noise)
    with torch.no_grad():
        mean, std = posterior(vae, torch.from_numpy(np.array(square(picture)))[None])
        pixels = VaeImageProcessor().preprocess(picture, height=64, width=64)
        expected = vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(std, expected.std)


def test_a_vae_is_told_by_what_makes_latents_of_it():
    vae, other = tiny_diffusion()[0], tiny_diffusion()[0]
    assert vae_identity(vae) == vae_identity(other.to(memory_format=torch.channels_last))
    with torch.no_grad():
        other.decoder.conv_out.weight += 1  # as of the VAEs that were finetuned to decode
    assert vae_identity(vae) == vae_identity(other)
    with torch.no_grad():
        other.quant_conv.weight += 1e-3
    assert vae_identity(vae) != vae_identity(other)
    vae.register_to_config(norm_num_groups=1)
    assert vae_identity(vae) != vae_identity(tiny_diffusion()[0])


def test_a_folder_that_is_no_base_is_named(tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="--latents: .*nowhere"):
        VaeEncoder(str(tmp_path / "nowhere"), "squash", cpu)
    with pytest.raises(UserError, match="--latents: .*"):
        VaeEncoder("", "squash", cpu)
