"""Each kind of vision transformer beside transformers' own, from a folder as it is released."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    Siglip2Config,
    Siglip2Model,
    Siglip2TextConfig,
)

from metamorph.errors import UserError
from metamorph.model import open_vision
from metamorph.model.clip import ClipEncoder
from metamorph.model.encoder_files import check_encoder
from metamorph.model.encoder_identity import identity, stored_identity
from metamorph.model.encoders import outline_vision
from metamorph.model.siglip2 import NaflexEncoder
from metamorph_kernels import pool_normalize
from tests.model.tiny_encoders import (
    FAMILIES,
    IMAGENET,
    SIZES,
    Family,
    patches_of,
    served,
    square,
)
from tests.pillow_processors import pillow_processor

TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 11}
TEXT |= {"num_attention_heads": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("released")
    return {name: family.write(root / name) for name, family in FAMILIES.items()}


@pytest.fixture(params=[*map(served, FAMILIES)])
def name(request) -> str:
    return request.param


@pytest.fixture
def family(name) -> Family:
    return FAMILIES[name]


@pytest.fixture
def folder(name, folders) -> Path:
    return folders[name]


def pixels_of(family: Family, count: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, family.image_size, family.image_size)


def pooled(tokens: torch.Tensor, side: int, grid: int) -> torch.Tensor:
    """Written out: tokens [B, side * side, C] to unit vectors [B, grid * grid, C]."""
    picture = tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=(grid, grid), mode="bilinear", align_corners=False)
    return F.normalize(picture.flatten(2).transpose(1, 2), dim=-1)


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours with some noise."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    noise = random.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("grid", [2, 4])
def test_features_equal_transformers(family, folder, grid):
    encoder = open_vision(folder, grid)
    assert type(encoder) is family.encoder and encoder.image_size == family.image_size
    features = encoder(pixels_of(family))
    assert features.shape == (2, grid * grid, 24) and not features.requires_grad
    expected = pooled(family.tokens(pixels_of(family)), family.side, grid)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_every_token_equals_transformers_where_nothing_is_pooled(family, folder):
    encoder = open_vision(folder, family.side)
    tokens = family.tokens(pixels_of(family))
    torch.testing.assert_close(encoder.encode(pixels_of(family)), tokens, atol=1e-4, rtol=1e-5)
    features = encoder(pixels_of(family))
    torch.testing.assert_close(features, F.normalize(tokens, dim=-1), atol=1e-5, rtol=0)


def test_the_last_layer_computes_what_is_read(family, folder):
    encoder = open_vision(folder, 1)
    seen = []
    encoder.layers[-1].mlp.register_forward_hook(lambda _, inputs, out: seen.append(out.shape[1]))
    features = encoder(pixels_of(family))
    whole = pool_normalize(encoder.encode(pixels_of(family)), 1)
    assert seen == [len(encoder.tokens_read), encoder.before + family.side**2]
    assert len(encoder.tokens_read) <= 4
    torch.testing.assert_close(features, whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_lower_precision_is_near(family, folder, precision):
    encoder = open_vision(folder, 2)
    exact = encoder(pixels_of(family))
    if precision == "bfloat16":
        encoder.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        features = encoder(pixels_of(family))
    assert F.cosine_similarity(features.float(), exact, dim=-1).min() > 0.99


@pytest.mark.parametrize("name", [served("DINOv3")])
def test_rotations_stay_exact_where_weights_are_rounded(family, folder):
    encoder = open_vision(folder, 2)
    pixel_values = pixels_of(family)
    exact = encoder.turns(pixel_values)
    rounded = encoder.bfloat16().turns(pixel_values)
    for before, after in zip(exact, rounded, strict=True):
        assert torch.equal(before.bfloat16(), after)


def test_a_saved_folder_loads_here_and_in_transformers(family, folder, tmp_path):
    encoder = open_vision(folder, 2)
    encoder.save_pretrained(tmp_path)
    check_encoder(tmp_path)
    again = open_vision(tmp_path, 2)
    assert torch.equal(again(pixels_of(family)), encoder(pixels_of(family)))
    shown = picture(70, 41)
    assert torch.equal(again.preprocess([shown]), encoder.preprocess([shown]))
    official, report = family.encoder.network.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        tokens = family.last(official.eval(), pixels_of(family))
    expected = pooled(tokens, family.side, 2)
    torch.testing.assert_close(again(pixels_of(family)), expected, atol=1e-5, rtol=0)


def test_its_identity_is_the_same_unopened_and_follows_what_decides(family, folder, tmp_path):
    encoder = open_vision(folder, 2)
    encoder.save_pretrained(tmp_path)
    known = identity(encoder)
    assert stored_identity(tmp_path, 2) == known != stored_identity(tmp_path, 1)
    for setting in family.encoder.kind.settings:
        path = tmp_path / "config.json"
        written = path.read_text()
        changed = {"num_attention_heads": 2, "hidden_act": "relu"}.get(setting, 0.5)
        path.write_text(json.dumps(json.loads(written) | {setting: changed}))
        assert stored_identity(tmp_path, 2) == identity(open_vision(tmp_path, 2)) != known, setting
        path.write_text(written)
    assert stored_identity(tmp_path, 2) == known


def test_another_size_is_another_encoder_where_any_is_taken(family, folder, tmp_path):
    encoder = open_vision(folder, 2)
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"size": square(32), "max_num_patches": 16}
    path.write_text(json.dumps(settings))
    if not encoder.kind.is_any_size:
        for opened in (lambda: open_vision(tmp_path, 2), lambda: check_encoder(tmp_path)):
            with pytest.raises(UserError, match=f"{path.name}: size is 32 pixels, .* takes 56"):
                opened()
        return
    smaller = open_vision(tmp_path, 4)
    assert smaller.image_size == 32 and smaller.tokens_per_image == 16
    assert smaller(pixels_of(family)[..., :32, :32]).shape == (2, 16, 24)
    assert stored_identity(tmp_path, 2) == identity(open_vision(tmp_path, 2)) != identity(encoder)
    with pytest.raises(UserError, match="grid: expected 1 to 4, the encoder's own grid, got 5"):
        open_vision(tmp_path, 5)


def test_operations_are_those_that_torch_counts(family, folder):
    encoder = open_vision(folder, 1)
    # Attention by matrix products, which it counts on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(pixels_of(family, count=1))
    assert encoder.operations() == counter.get_total_flops()
    with torch.device("meta"):
        outlined = outline_vision(folder, 1)
    assert outlined.operations() == encoder.operations()
    assert outlined.working_bytes(2) == encoder.working_bytes(2) < encoder.working_bytes(4)


@pytest.mark.parametrize("grid", [4, 24])
def test_from_16_to_576_tokens(family, grid):
    """As many as 24 x 24 patches give."""
    config = family.network().config
    size = 24 * SIZES["patch_size"]
    if family.encoder is NaflexEncoder:
        config.num_patches = 576
    else:
        config.image_size = size
    encoder = family.encoder(config, grid)
    assert encoder(torch.zeros(1, 3, size, size)).shape == (1, grid * grid, 24)


@pytest.mark.parametrize(
    ("name", "processor"),
    [served("SigLIP 2", "Siglip"), served("CLIP", "CLIP"), served("DINOv2 giant", "Bit")],
)
def test_squares_are_preprocessed_as_transformers_does(folders, name, processor):
    official = pillow_processor(processor).from_pretrained(folders[name])
    shown = picture(91, 91)
    expected = official([shown], return_tensors="pt").pixel_values
    found = open_vision(folders[name], 2).preprocess([shown])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_squares_become_the_patches_of_naflex(folders, tmp_path):
    encoder = open_vision(folders["SigLIP 2 NaFlex"], 2)
    encoder.save_pretrained(tmp_path)
    shown = picture(91, 91)
    for folder in (folders["SigLIP 2 NaFlex"], tmp_path):
        official = pillow_processor("Siglip2").from_pretrained(folder)
        expected = official([shown], return_tensors="pt")
        assert expected.spatial_shapes.tolist() == [[5, 5]]
        assert expected.pixel_attention_mask.all()
        found = patches_of(encoder.preprocess([shown]), 8)
        torch.testing.assert_close(found, expected.pixel_values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [served("DINOv3")])
def test_dinov3_resizes_unrounded_pixels_which_is_within_a_level(folder):
    """What its processor does with torchvision, which is not needed here: torch's own resizing."""
    shown = picture(91, 67)
    exact = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None] / 255
    exact = F.interpolate(exact, size=(48, 48), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(IMAGENET[f"image_{key}"])[:, None, None] for key in ("mean", "std"))
    found = open_vision(folder, 2).preprocess([shown]) * std + mean
    torch.testing.assert_close(found, exact, atol=1 / 255, rtol=0)


def test_the_middle_is_not_cut_out(folders):
    """CLIP's and DINOv2's own processors would leave out the edges of this picture."""
    shown = picture(112, 56)
    shown.paste("red", (0, 0, 20, 56))
    encoder = open_vision(folders["CLIP"], 2)
    expected = encoder.preprocess([shown.resize((56, 56), Image.Resampling.BICUBIC)])
    assert torch.equal(encoder.preprocess([shown]), expected)


def test_without_a_preprocessor_config_it_is_as_released(family, folder, tmp_path):
    family.model().save_pretrained(tmp_path)
    encoder = open_vision(tmp_path, 2)
    assert encoder.image_size == 56 and encoder.mean == family.encoder.kind.mean
    assert list(encoder.mean) == family.preprocessor["image_mean"]
    assert list(encoder.std) == family.preprocessor["image_std"]


@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_a_model_with_text_gives_its_vision_half(kind, tmp_path):
    name = "CLIP" if kind == "clip" else "SigLIP 2 NaFlex"
    vision = FAMILIES[name].network().config
    if kind == "clip":
        config = CLIPConfig(text_config=CLIPTextConfig(**TEXT), vision_config=vision)
        whole = CLIPModel(config).eval()
    else:
        config = Siglip2Config(text_config=Siglip2TextConfig(**TEXT), vision_config=vision)
        whole = Siglip2Model(config).eval()
    whole.save_pretrained(tmp_path)
    encoder = open_vision(tmp_path, 2)
    assert type(encoder) is (ClipEncoder if kind == "clip" else NaflexEncoder)
    official = FAMILIES[name].encoder.network.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = pooled(FAMILIES[name].last(official, pixel_values), 7, 2)
    torch.testing.assert_close(encoder(pixel_values), expected, atol=1e-5, rtol=0)
