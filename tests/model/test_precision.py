"""Precision: which layers become float8, by whom, and that the model stays what it is."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

from metamorph.config.keys import Fp8Recipe
from metamorph.errors import UserError
from metamorph.model import assemble
from metamorph.model.precision import (
    RECIPES,
    Float8Linear,
    Float8MLPGelu,
    autocast,
    check_precision,
    convert_to_float8,
    convert_to_generate,
)
from metamorph.model.transformer_engine_linear import SUPPORT
from metamorph_kernels import key_intervals
from tests import fake_libraries, fake_transformer_engine
from tests.tiny_run import GRID, write_language, write_vision

CPU = torch.device("cpu")
PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
]
LAYERS = [f"language.model.layers.{layer}.{name}" for layer in (0, 1) for name in PROJECTIONS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    write_language(folder / "llama")
    write_vision(folder / "siglip", width=32)
    return folder


@pytest.fixture
def model(folder):
    torch.manual_seed(0)
    return assemble(folder / "llama", folder / "siglip", grid=GRID)[0]


@pytest.fixture
def transformer_engine(monkeypatch):
    fake_libraries.install(monkeypatch, "transformer-engine")
    fake_libraries.pretend_gpu(monkeypatch)


@pytest.fixture
def torchao(monkeypatch):
    pytest.importorskip("torchao")
    fake_libraries.pretend_gpu(monkeypatch)  # on a CPU it emulates, which only tests want


def states_of(model, tokens: int, precision: str) -> torch.Tensor:
    """States [T, H] of a row of text and one picture; T need not be a multiple of anything."""
    torch.manual_seed(1)
    ids = torch.randint(5, 400, (tokens,))
    features = torch.nn.functional.normalize(torch.randn(1, GRID**2, 32), dim=-1)
    places = torch.arange(3, 3 + GRID**2)
    with autocast(precision, CPU):
        return model(ids, torch.arange(tokens), key_intervals([tokens]), features, places)


def test_native_converts_the_decoder_layers_and_the_projector(model):
    before = {name: (parameter, parameter.dtype) for name, parameter in model.named_parameters()}
    done = convert_to_float8(model, "native")
    assert sorted(done.converted) == sorted([*LAYERS, "projector"])
    found = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert found == set(LAYERS)
    assert isinstance(model.projector, Float8MLPGelu)
    assert not isinstance(model.vision_head, Float8MLPGelu)
    assert done.left == {"language.lm_head": "a head", "vision_head": "a head"}
    after = dict(model.named_parameters())
    assert list(after) == list(before) and list(model.state_dict()) == [*after]
    for name, (parameter, dtype) in before.items():
        assert after[name] is parameter and parameter.dtype == dtype


def test_layers_of_other_widths_stay_and_are_named(tmp_path):
    write_language(tmp_path / "llama", width=24)  # key and value are 12 wide, the MLP is 48
    write_vision(tmp_path / "siglip")  # 24 wide
    model, _ = assemble(tmp_path / "llama", tmp_path / "siglip", grid=GRID)
    done = convert_to_float8(model, "native")
    assert done.converted == ()
    assert done.left["language.model.layers.1.self_attn.k_proj"] == (
        "24 x 12, float8 needs multiples of 16"
    )
    assert done.left["projector"] == "24 x 24 x 24, float8 needs multiples of 16"
    assert len(done.left) == len(LAYERS) + 3
    assert not any(isinstance(module, Float8Linear) for module in model.modules())


def test_native_rounds_what_it_converts_and_little_else(model):
    expected = states_of(model, 21, "bf16")
    convert_to_float8(model, "native")
    found = states_of(model, 21, "fp8")
    assert not torch.equal(found, expected)
    error = (found - expected).norm() / expected.norm()
    assert 0.001 < error < 0.1
    found.square().sum().backward()
    for name in [*LAYERS, "projector.linear_1", "projector.linear_2"]:
        gradient = model.get_submodule(name).weight.grad
        assert gradient.dtype == torch.float32 and gradient.abs().max() > 0


def test_without_pictures_the_projector_has_no_rows(model):
    convert_to_float8(model, "native")
    none = torch.zeros(0, GRID**2, 32)
    with autocast("fp8", CPU):
        states = model(
            torch.arange(5, 12), torch.arange(7), key_intervals([7]), none, torch.arange(0)
        )
    states.sum().backward()
    assert model.projector.linear_1.weight.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [
        (None, "rowwise"),
        ("rowwise", "rowwise"),
        ("rowwise_with_gw_hp", "rowwise_with_gw_hp"),
        ("tensorwise", "tensorwise"),
    ],
)
def test_torchao_converts_the_decoder_layers(model, torchao, recipe, chosen):
    from torchao.float8.config import ScalingType
    from torchao.float8.float8_linear import Float8Linear as TorchaoLinear

    names = list(model.state_dict())
    expected = states_of(model, 21, "bf16")
    done = convert_to_float8(model, "torchao", fp8_recipe=recipe)
    assert done.recipe == chosen
    found = {name for name, module in model.named_modules() if isinstance(module, TorchaoLinear)}
    assert found == set(done.converted) == set(LAYERS)
    assert done.left["projector"] == "converted by native only"
    assert list(model.state_dict()) == names
    config = model.get_submodule(LAYERS[0]).config
    assert config.emulate and config.round_scales_to_power_of_2 == (chosen != "tensorwise")
    in_float8 = config.cast_config_input_for_grad_weight.scaling_type is not ScalingType.DISABLED
    assert in_float8 == (chosen != "rowwise_with_gw_hp")
    states = states_of(model, 21, "fp8")
    assert 0.001 < (states - expected).norm() / expected.norm() < 0.1


def test_transformer_engine_converts_the_decoder_layers(model, transformer_engine):
    names = list(model.state_dict())
    parameters = dict(model.named_parameters())
    expected = states_of(model, 21, "bf16")
    done = convert_to_float8(model, "transformer_engine")
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, fake_transformer_engine.Linear)
    }
    assert found == set(done.converted) == set(LAYERS)
    # No extra state, neither saved nor missed, and the very parameters of before.
    assert list(model.state_dict()) == names
    model.load_state_dict(model.state_dict(), strict=True)
    assert all(parameters[name] is value for name, value in model.named_parameters())
    # The stand-in computes in bf16, checks the recipe, and takes whole multiples of rows only: sums
    # of more rows may be taken in another order, and some then rounded to the next bf16.
    fake_libraries.CALLS.clear()
    error = (states_of(model, 21, "fp8") - expected).norm() / expected.norm()
    assert error < torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(states_of(model, 32, "fp8"), states_of(model, 32, "fp8"))
    # q, k and v are computed of one rounded input, and so are gate and up.
    shared = "Linear of what is rounded"
    block = ["Quantizer"] + [shared] * 3 + ["Linear", "Quantizer"] + [shared] * 2 + ["Linear"]
    assert fake_libraries.CALLS == block * 2 * 3


def test_a_rounded_input_is_turned_for_the_gradients_of_weights_alone(model, transformer_engine):
    convert_to_float8(model, "transformer_engine")
    usages = fake_transformer_engine.USAGES
    for trained, has_gradients, expected in (
        (True, True, (True, True)),
        (True, False, (True, False)),
        (False, True, (True, False)),
    ):
        usages.clear()
        with torch.set_grad_enabled(has_gradients):
            states_of(model.requires_grad_(trained), 16, "fp8")
        assert usages == [expected] * 4


def test_layers_that_cannot_share_a_rounded_input_round_it_apart(tmp_path, transformer_engine):
    write_language(tmp_path / "llama", width=32)
    write_vision(tmp_path / "siglip", width=32)
    for backend in ("native", "transformer_engine"):
        model, _ = assemble(tmp_path / "llama", tmp_path / "siglip", grid=GRID)
        expected = states_of(model, 16, "bf16")
        attention = model.language.model.layers[0].self_attn
        keys = torch.nn.Linear(32, 16, bias=False)  # as one of another width would stay
        keys.weight = attention.k_proj.weight
        convert_to_float8(model, backend)
        attention.k_proj = keys
        x = torch.randn(16, 32)
        fake_libraries.CALLS.clear()
        with autocast("fp8", CPU):
            _, k, _ = attention.project(x, attention.q_proj, keys, attention.v_proj)
            assert torch.equal(k, keys(x))
        assert "Quantizer" not in fake_libraries.CALLS
        error = (states_of(model, 16, "fp8") - expected).norm() / expected.norm()
        assert error < 0.1


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    write_language(folder / "llama", width=128)  # key and value are 64 wide
    write_vision(folder / "siglip")
    return folder


@pytest.mark.parametrize(
    ("recipe", "multiple"),
    [
        ("Float8CurrentScaling", 16),
        ("MXFP8BlockScaling", 32),
        ("Float8BlockScaling", 128),
        ("NVFP4BlockScaling", 128),
    ],
)
def test_a_recipe_by_name_gets_whole_blocks(wide_folder, transformer_engine, recipe, multiple):
    """The stand-in refuses rows and widths that the recipe cannot round."""
    model, _ = assemble(wide_folder / "llama", wide_folder / "siglip", grid=GRID)
    done = convert_to_float8(model, "transformer_engine", fp8_recipe=recipe)
    assert done.recipe == recipe
    narrow = {name for name in LAYERS if name.endswith(("k_proj", "v_proj"))}
    assert set(done.converted) == set(LAYERS) - (narrow if multiple == 128 else set())
    if multiple == 128:
        assert {done.left[name] for name in narrow} == {"128 x 64, float8 needs multiples of 128"}
    token = torch.arange(21)
    with autocast("fp8", CPU):
        states = model(token, token, key_intervals([21]), torch.zeros(0, GRID**2, 24), token[:0])
    assert states.shape == (21, 128) and states.isfinite().all()


def test_a_recipe_that_the_gpu_has_not_is_refused_in_its_words(monkeypatch):
    reason = "Device compute capability 10.0 or higher required for MXFP8 execution."
    refuse = {"is_mxfp8_available": lambda return_reason: (False, reason)}
    fake_libraries.install(monkeypatch, "transformer-engine", **refuse)
    fake_libraries.pretend_gpu(monkeypatch)
    with pytest.raises(UserError, match=rf"\(MXFP8BlockScaling: {reason}\); the backend native"):
        check_precision("fp8", "transformer_engine", CPU, "MXFP8BlockScaling")
    check_precision("fp8", "transformer_engine", CPU, "Float8BlockScaling")


def test_weights_of_a_model_that_generates_are_rounded_once(model, transformer_engine):
    convert_to_generate(model, "transformer_engine")
    expected = states_of(model, 21, "fp8")
    with torch.no_grad():
        for name in LAYERS:
            model.get_submodule(name).weight.zero_()  # as nobody does: what was rounded is used
    fake_transformer_engine.MICROBATCHES.clear()
    assert torch.equal(states_of(model, 21, "fp8"), expected)
    assert fake_transformer_engine.MICROBATCHES == [False] * len(LAYERS)


def test_a_block_recomputed_in_the_backward_is_recomputed_in_float8(model, transformer_engine):
    convert_to_float8(model, "transformer_engine")
    layer = model.get_submodule(LAYERS[0])
    x = torch.randn(16, 32, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    fake_libraries.CALLS.clear()
    y.sum().backward()  # outside of any context
    assert fake_libraries.CALLS == ["Linear"]


def test_libraries_are_imported_where_they_are_asked_for():
    """torchao is not looked for here: where it is installed, transformers imports it."""
    code = """
import sys, metamorph.training.language_stage
print("transformer_engine" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "False", shown.stderr


@pytest.mark.parametrize("backend", ["torchao", "transformer_engine"])
def test_a_backend_that_cannot_run_says_why(model, monkeypatch, backend):
    library = backend.replace("_", "-")
    fake_libraries.remove_all(monkeypatch)
    with pytest.raises(UserError, match=rf"fp8: {backend} .*\(not installed\).* native runs every"):
        convert_to_float8(model, backend)
    fake_libraries.install(monkeypatch, library)
    with pytest.raises(UserError, match=r"\(no kernels for cpu devices\)"):
        convert_to_float8(model, backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match=r"\(compute capability 8.0; .* need 8.9 or newer\)"):
        check_precision("fp8", backend, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    check_precision("fp8", backend, torch.device("cuda"))
    assert not any(isinstance(module, Float8Linear) for module in model.modules())


@pytest.mark.parametrize(
    ("precision", "backend", "message"),
    [
        ("fp16", "native", "precision: expected one of fp32, bf16, fp8, got 'fp16'"),
        ("bf16", "apex", "fp8_backend: expected one of torchao, .*, got 'apex'"),
    ],
)
def test_what_is_no_precision(precision, backend, message):
    with pytest.raises(UserError, match=message):
        check_precision(precision, backend, CPU)


@pytest.mark.parametrize(
    ("precision", "backend", "recipe", "message"),
    [
        ("bf16", "torchao", "rowwise", "rowwise is for precision fp8, got bf16"),
        ("fp8", "torchao", "MXFP8BlockScaling", "one of rowwise, .*, tensorwise for torchao"),
        ("fp8", "transformer_engine", "rowwise", "expected one of Float8CurrentScaling, .* 'roww"),
        ("fp8", "native", "rowwise", "expected none for native, got 'rowwise'"),
    ],
)
def test_a_recipe_is_one_of_the_backend(precision, backend, recipe, message):
    with pytest.raises(UserError, match=f"fp8_recipe: .*{message}"):
        check_precision(precision, backend, CPU, recipe)


def test_every_recipe_has_its_probe_and_its_key():
    assert set(RECIPES["transformer_engine"]) == set(SUPPORT)
    assert {name for known in RECIPES.values() for name in known} == set(get_args(Fp8Recipe))


def test_bf16_asks_for_no_backend(monkeypatch):
    fake_libraries.remove_all(monkeypatch)
    check_precision("bf16", "torchao", CPU)
