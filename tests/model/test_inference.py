"""A model that was made fast to generate with computes what it did, and is saved as it was."""

import re
import weakref
from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.model import Llama, MetaMorph, inference
from metamorph.model.inference import (
    RotaryTable,
    cast_weights,
    lean_linear,
    lean_mlp_gelu,
    lean_rms_norm,
    merge_projections,
    store_by_columns,
)
from metamorph.model.language import rms_norm
from metamorph.model.language_families import FAMILIES
from metamorph.model.precision import autocast, convert_to_float8
from metamorph_kernels import cpp_absence, cpu_library, linear_cpp, mlp_gelu
from tests import fake_libraries
from tests.model.tiny_models import CPU, cosines, states_of, tiny_model

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# Where the library for CPUs is built, PyTorch still has to compute the same without it.
LIBRARIES = [None] if cpp_absence("cpu") is None else []
every_family = pytest.mark.parametrize("model_type", FAMILIES)
in_cpp_and_without = pytest.mark.parametrize("absence", [*LIBRARIES, "not built"])


def merged(model: MetaMorph) -> MetaMorph:
    model = deepcopy(model)
    merge_projections(model)
    return model


@in_cpp_and_without
@settings(max_examples=25)
@given(
    groups=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    half=st.integers(1, 9),
    hidden=st.integers(3, 40),
    intermediate=st.integers(1, 50),
    tokens=st.integers(3, 9),
    scaling=st.sampled_from([None, LLAMA3]),
    model_type=st.sampled_from([*FAMILIES]),
)
def test_merged_projections_compute_what_separate_ones_do(
    absence, groups, key_heads, half, hidden, intermediate, tokens, scaling, model_type
):
    model = tiny_model(
        hidden_size=hidden, intermediate_size=intermediate, num_key_value_heads=key_heads,
        num_attention_heads=groups * key_heads, head_dim=2 * half, rope_scaling=scaling,
        model_type=model_type,
    )  # fmt: skip
    expected = states_of(model, tokens)
    with patch.object(cpu_library, "_load", lambda: absence), torch.no_grad():
        found = states_of(merged(model), tokens)
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_projections_round_as_separate_ones_do_in_bfloat16(dtype, model_type):
    model = tiny_model(dtype, model_type=model_type)
    expected, found = (states_of(m, precision="bf16") for m in (model, merged(model)))
    assert found.dtype == expected.dtype
    assert cosines(found, expected).min() > 0.999


@every_family
@pytest.mark.parametrize("make", [lambda model: model, merged])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_table_of_all_positions_holds_what_each_step_would_compute(make, precision, model_type):
    model = make(tiny_model(rope_scaling=LLAMA3, model_type=model_type)).language
    embeddings, positions = torch.randn(5, 32), torch.tensor([0, 99, 3, 3, 64])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    dtypes = set()

    def attention(layer_index, q, k, v):
        dtypes.update((q.dtype, k.dtype, v.dtype))
        return q

    with torch.no_grad(), autocast(precision, CPU):
        table = RotaryTable(model, 100, device=CPU, dtype=dtype)
        states = model.run(embeddings, *table.at(positions), attention)
        assert torch.equal(states, model(embeddings, positions, attention))
    assert dtypes == {dtype}


@pytest.mark.parametrize("make", [lambda model: model, merged])
def test_of_kept_tokens_the_last_layer_computes_the_same_states(make):
    model = make(tiny_model()).language
    embeddings, kept = torch.randn(5, 32), torch.tensor([1, 4])
    last = len(model.model.layers) - 1

    def attention_of(rows):
        return lambda layer_index, q, k, v: q[rows] if layer_index == last else q

    with torch.no_grad():
        table = RotaryTable(model, 5, device=CPU, dtype=torch.float32).at(torch.arange(5))
        expected = model.run(embeddings, *table, attention_of(...))[kept]
        torch.testing.assert_close(
            model.run(embeddings, *table, attention_of(kept), kept), expected
        )


@every_family
def test_nothing_is_held_twice_and_what_is_saved_is_what_was_read(tmp_path, model_type):
    model = tiny_model(model_type=model_type)
    before = deepcopy(model.state_dict())
    numbers = sum(parameter.numel() for parameter in model.parameters())
    separate = model.language.model.layers[0].self_attn.q_proj.weight
    merge_projections(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers
    assert all(parameter is not separate for parameter in model.parameters())
    names = {name.rpartition(".")[2] for name, _ in model.language.model.layers.named_modules()}
    assert {"qkv_proj", "gate_up_proj"} <= names and not {"q_proj", "up_proj"} & names
    assert set(model.state_dict()) == set(before)
    model.save_pretrained(tmp_path)
    again = MetaMorph.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_separate_weights_are_freed_layer_by_layer(monkeypatch):
    model = tiny_model(num_hidden_layers=3)
    merged_ones = re.compile(r"\.([qkv]|gate|up)_proj\.weight$")
    separate = [
        weakref.ref(weight) for name, weight in model.named_parameters() if merged_ones.search(name)
    ]
    alive = []

    def take_merged(parent, names):
        alive.append(sum(weight() is not None for weight in separate))
        return take(parent, names)

    take = inference.take_merged
    monkeypatch.setattr(inference, "take_merged", take_merged)
    merge_projections(model)
    assert alive == [15, 12, 10, 7, 5, 2]


def test_a_model_that_is_trained_is_left_alone():
    model = tiny_model()
    expected = states_of(model)
    merge_projections(tiny_model())
    assert torch.equal(states_of(model), expected)
    assert Llama.tables is type(model.language).tables
    assert "compute" not in vars(model.language.model.norm)


@every_family
@pytest.mark.parametrize("backend", ["native", "torchao"])
def test_merged_layers_become_float8_as_separate_ones_do(backend, model_type, monkeypatch):
    if backend == "torchao":
        pytest.importorskip("torchao")
        fake_libraries.pretend_gpu(monkeypatch)  # on a CPU it emulates, which only tests want
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
    model = tiny_model(**sizes, model_type=model_type)
    joined = merged(model)
    done = convert_to_float8(joined, backend, CPU)
    assert {name.rpartition(".")[2] for name in done.converted} == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj",
    }  # fmt: skip
    convert_to_float8(model, backend, CPU)
    expected = states_of(model, precision="fp8")
    assert cosines(states_of(joined, precision="fp8"), expected).min() > 0.99
    assert set(joined.state_dict()) == set(model.state_dict())
    for converted in (model, joined):
        with pytest.raises(ValueError, match="q_proj: expected a plain linear layer to merge, got"):
            merge_projections(converted)


@every_family
@pytest.mark.parametrize("make", [lambda model: model, merged])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_weights_that_are_cast_once_give_what_autocast_gives(make, tied, model_type):
    model = make(tiny_model(tie_word_embeddings=tied, model_type=model_type))
    states = states_of(model, precision="bf16")

    def outputs():
        with autocast("bf16", CPU):
            ids, places = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([1, 2, 3, 4])
            features = torch.eye(4, 8)[None]
            return (
                model.language.head(states),
                model.predict_visual(states),
                model.embed(ids, features, places),
            )

    expected = states, *outputs()
    blocks = model.language.model.layers
    before = sum(parameter.nbytes for parameter in blocks.parameters() if parameter.ndim == 2)
    cast_weights(model, torch.bfloat16)
    after = sum(parameter.nbytes for parameter in blocks.parameters() if parameter.ndim == 2)
    assert after * 2 == before
    found = states_of(model, precision="bf16"), *outputs()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@in_cpp_and_without
@given(st.integers(1, 70), st.integers(1, 5), st.floats(1e-8, 1e3), st.floats(1e-8, 1.0))
def test_the_lean_norm_is_the_norm(absence, width, rows, size, eps):
    generator = torch.Generator().manual_seed(width)
    x = size * torch.randn(rows, width, generator=generator)
    x[0] = 0
    weight = torch.randn(width, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = x.to(dtype), weight.to(dtype)
        with patch.object(cpu_library, "_load", lambda: absence), torch.no_grad():
            found = lean_rms_norm(eps)(x, weight, eps)
        torch.testing.assert_close(found, rms_norm(x, weight, eps))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9))
def test_the_lean_mlp_is_the_mlp(rows, width, hidden, out):
    generator = torch.Generator().manual_seed(hidden)
    shapes = (rows, width), (hidden, width), (hidden,), (out, hidden), (out,)
    tensors = [3 * torch.randn(shape, generator=generator) for shape in shapes]
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [tensor.to(dtype) for tensor in tensors]
        expected = mlp_gelu(*tensors)
        torch.testing.assert_close(lean_mlp_gelu(*tensors), expected, rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        found = lean_mlp_gelu(*(tensor.float() for tensor in tensors))
    assert torch.equal(found, expected)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 40), st.booleans())
def test_the_lean_product_is_the_product(rows, width, out, by_columns):
    generator = torch.Generator().manual_seed(rows)
    x, bias = (torch.randn(size, generator=generator) for size in ((rows, width), (out,)))
    weight = torch.randn(width, out, generator=generator).t()
    weight = weight if by_columns else weight.contiguous()
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [tensor.to(dtype) for tensor in (x, weight, bias)]
        expected = torch.nn.functional.linear(*tensors)
        torch.testing.assert_close(lean_linear(*tensors), expected)
        with torch.no_grad():
            torch.testing.assert_close(lean_linear(*tensors), expected)
            assert lean_linear(tensors[0][None], weight.to(dtype)).shape == (1, rows, out)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert lean_linear(x, weight, bias).dtype == torch.bfloat16


def test_the_lean_product_compiles_for_any_number_of_rows():
    torch._dynamo.reset()
    weight = torch.randn(7, 20).t()
    compiled = torch.compile(lean_linear, backend="eager", fullgraph=True)
    with torch.no_grad():
        for rows in (5, 6, 40, 1):
            x = torch.randn(rows, 7)
            torch.testing.assert_close(compiled(x, weight), torch.nn.functional.linear(x, weight))


@pytest.mark.skipif(cpp_absence("cpu") is not None, reason=str(cpp_absence("cpu")))
def test_several_rows_of_an_opened_model_are_multiplied_in_cpp(monkeypatch):
    model = merged(tiny_model())
    store_by_columns(model)
    counts = []

    def counted(x, weight, bias=None):
        counts.append(len(x))
        return linear_cpp(x, weight, bias)

    monkeypatch.setattr(inference, "linear_cpp", counted)
    with torch.no_grad():
        for rows in (1, 2, 32, 33):
            ids = torch.arange(rows)
            model.language(model.language.model.embed_tokens(ids), ids, lambda layer, q, k, v: q)
    layers = len(model.language.model.layers)
    assert counts == [2] * 4 * layers + [32] * 4 * layers


@every_family
def test_weights_by_columns_are_the_same_weights(tmp_path, model_type):
    model = merged(tiny_model(model_type=model_type))
    expected = states_of(model)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store_by_columns(model)
    blocks = model.language.model.layers
    layers = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert layers and all(layer.weight.t().is_contiguous() for layer in layers)
    torch.testing.assert_close(states_of(model), expected)
    model.language.save_pretrained(tmp_path)
    found = Llama.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], saved[f"language.{name}"]) for name in found)


@every_family
def test_merged_blocks_compile_without_a_break(model_type):
    torch._dynamo.reset()
    model = merged(tiny_model(model_type=model_type)).language
    embeddings, positions = torch.randn(3, 32), torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = model(embeddings, positions, lambda layer, q, k, v: q)
        for layer in model.model.layers:
            layer.compile(backend="eager", fullgraph=True)
        found = model(embeddings, positions, lambda layer, q, k, v: q)
    torch.testing.assert_close(found, expected)
