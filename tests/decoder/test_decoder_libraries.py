"""Parts of the decoder by other libraries draw the same pictures, and say why where they cannot."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from metamorph.decoder.kinds import open_decoder
from metamorph.decoder.libraries import DecoderOptions
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.errors import UserError
from tests import fake_libraries
from tests.tiny_run import tiny_decoder, tiny_one_pass

FEATURES = torch.nn.functional.normalize(
    torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(0)), dim=-1
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_libraries(monkeypatch):
    fake_libraries.remove_all(monkeypatch)
    fake_libraries.pretend_gpu(monkeypatch)


@pytest.fixture
def wide() -> VisualDecoder:
    """With numbers of groups and channels that apex knows, and others, as in the VAE."""
    decoder = tiny_decoder()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(128,), norm_num_groups=32,
        cross_attention_dim=12, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None, up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    decoder.register_modules(unet=unet)
    for name, parameter in unet.named_parameters():  # a norm that mixed them up would show
        if "norm" in name:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return decoder


def latents(decoder: VisualDecoder) -> torch.Tensor:
    return decoder.draw(FEATURES, seeds=[1, 2], output_type="latent")


@pytest.mark.parametrize(
    ("name", "library", "called", "dtype"),
    [
        ("flash_attn", "flash-attn", "flash_attn_func", torch.bfloat16),
        ("flash_attn", "flash-attn-3", "flash_attn_func", torch.bfloat16),
        ("xformers", "xformers", "memory_efficient_attention", torch.bfloat16),
        ("xformers", "xformers", "memory_efficient_attention", torch.float32),
    ],
)
def test_another_attention_draws_the_same(monkeypatch, name, library, called, dtype):
    decoder = tiny_decoder()
    exact = latents(decoder)
    decoder.to(dtype)
    rounded = latents(decoder)
    fake_libraries.install(monkeypatch, library)
    decoder.use_libraries(attention=name)
    fake_libraries.CALLS.clear()
    found = latents(decoder)
    # Two steps of three transformer blocks, which attend to themselves and to the condition.
    assert fake_libraries.CALLS == [called] * 2 * 3 * 2
    assert (found - exact).norm() <= 2 * (rounded - exact).norm() + 1e-5 * exact.norm()


def test_group_norms_of_apex_draw_the_same_and_are_saved_as_ever(monkeypatch, tmp_path, wide):
    expected, names = latents(wide), list(wide.unet.state_dict())
    fake_libraries.install(monkeypatch, "apex-group-norm")
    wide.use_libraries(group_norm="apex")
    assert list(wide.unet.state_dict()) == names
    norms = [m for m in wide.unet.modules() if isinstance(m, fake_libraries.GroupNorm)]
    others = [m for m in wide.unet.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) >= 8 and not others  # those of the VAE have too few channels
    fake_libraries.CALLS.clear()
    torch.testing.assert_close(latents(wide), expected, atol=1e-4, rtol=1e-4)
    assert fake_libraries.CALLS == ["GroupNorm"] * 2 * len(norms)
    wide.save_pretrained(tmp_path)
    fake_libraries.remove_all(monkeypatch)
    again = latents(VisualDecoder.from_folder(tmp_path))
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)


def test_a_decoder_is_opened_with_its_options(monkeypatch, tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    fake_libraries.install(monkeypatch, "flash-attn")
    decoder = open_decoder(tmp_path, CPU, DecoderOptions("bf16", attention="flash_attn"))
    assert decoder.unet.dtype == decoder.vae.dtype == decoder.adapter.dtype == torch.bfloat16
    drawn = decoder.draw(FEATURES, seeds=[1, 2])
    assert fake_libraries.CALLS and np.asarray(drawn[0]).std() > 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            DecoderOptions(attention="flash_attn"),
            r"the decoder's attention by flash_attn cannot be used here \(flash-attn-3: not "
            r"installed; flash-attn: not installed\); see docs/libraries.md",
        ),
        (DecoderOptions(attention="xformers"), r"attention by xformers .*xformers: not installed"),
        (DecoderOptions(group_norm="apex"), r"group norm by apex .*apex-group-norm: not installed"),
    ],
)
def test_a_missing_library_is_named(tmp_path, options, expected):
    with pytest.raises(UserError, match=expected):
        options.check("diffusion", CPU)
    tiny_decoder().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=expected):
        open_decoder(tmp_path, CPU, options)


def test_what_a_library_cannot_compute_is_said_before_anything_is_drawn(monkeypatch):
    decoder = tiny_decoder()
    fake_libraries.install(monkeypatch, "flash-attn")
    with pytest.raises(
        UserError, match=r"with heads of 4 in torch.float32 .*only support fp16 and bf16 data type"
    ):
        decoder.use_libraries(attention="flash_attn")
    fake_libraries.install(monkeypatch, "apex-group-norm")
    with pytest.raises(UserError, match="know none of this decoder's numbers of groups and chann"):
        decoder.use_libraries(group_norm="apex")
    with pytest.raises(ValueError, match="attention: expected one of flash_attn, xformers, got 'm"):
        decoder.use_libraries(attention="math")
    with pytest.raises(ValueError, match="precision: expected fp32 or bf16, got 'fp16'"):
        DecoderOptions("fp16")


def test_a_refusal_leaves_the_decoder_as_it_was(monkeypatch, wide):
    """Also where another library could, and where all norms but the last of the VAE can."""
    for library in ("xformers", "apex-group-norm"):
        fake_libraries.install(monkeypatch, library)
    vae = AutoencoderKL(block_out_channels=(128,), mid_block_add_attention=False)
    wide.register_modules(vae=vae)
    forward = fake_libraries.GroupNorm.forward

    def broken(norm, pixels):
        if norm.weight is vae.decoder.conv_norm_out.weight:
            raise RuntimeError("no kernel")
        return forward(norm, pixels)

    def state():
        modules = [(name, type(module)) for name, module in wide.unet.named_modules()]
        processors = [type(processor) for processor in wide.unet.attn_processors.values()]
        return modules, processors, [weight.stride() for weight in wide.unet.parameters()]

    before = state()
    with monkeypatch.context() as patch:
        patch.setattr(fake_libraries.GroupNorm, "forward", broken)
        with pytest.raises(UserError, match="with 128 channels in torch.float32 .*no kernel"):
            wide.use_libraries(attention="xformers", group_norm="apex")
    assert state() == before
    wide.use_libraries(attention="xformers", group_norm="apex")
    assert all(one != other for one, other in zip(state(), before, strict=True))


def test_a_decoder_that_draws_in_one_pass_takes_none(tmp_path):
    tiny_one_pass().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="draws in one pass: its attention is PyTorch's own, not b"):
        open_decoder(tmp_path, CPU, DecoderOptions(attention="xformers"))
    decoder = open_decoder(tmp_path, CPU, DecoderOptions("bf16"))
    assert decoder.vit.dtype == torch.bfloat16 and len(decoder.draw(FEATURES)) == 2


def test_compiled_blocks_draw_the_same(tmp_path, wide):
    torch.manual_seed(0)
    wide.register_modules(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, mid_block_add_attention=False)
    )
    expected = wide.draw(FEATURES, seeds=[1, 2])
    assert np.asarray(expected[0]).std() > 10
    wide.compile(backend="eager")
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    drawn = wide.draw(FEATURES, seeds=[1, 2])
    assert graphs["unique_graphs"] - before == 4  # two blocks of the UNet, and of the VAE
    wide.save_pretrained(tmp_path)
    after_saving = wide.draw(FEATURES, seeds=[1, 2])
    assert graphs["unique_graphs"] - before == 4  # nothing is compiled anew
    assert wide.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    again = VisualDecoder.from_folder(tmp_path).draw(FEATURES, seeds=[1, 2])
    for pictures in (drawn, after_saving, again):
        for one, other in zip(pictures, expected, strict=True):
            assert np.abs(np.subtract(one, other, dtype=int)).max() <= 1
