"""Weights in 8 bits: half the memory, nearly the same states, plain refusals."""

import sys
from copy import deepcopy

import pytest
import torch

from metamorph.errors import UserError
from metamorph.model.inference import cast_weights, merge_projections
from metamorph.model.precision import convert_to_float8
from metamorph.model.quantization import KINDS, check_weights, quantize_weights
from tests.model.tiny_models import CPU, cosines, states_of, tiny_model

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}


@pytest.fixture(autouse=True)
def torchao():
    pytest.importorskip("torchao")


def stored_bytes(module: torch.nn.Module) -> int:
    """Of all tensors behind its parameters."""
    total = 0
    for parameter in module.parameters():
        names = (
            parameter.__tensor_flatten__()[0] if hasattr(parameter, "__tensor_flatten__") else []
        )
        total += sum(getattr(parameter, name).nbytes for name in names) or parameter.nbytes
    return total


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "fp32"), (torch.float32, "bf16"), (torch.bfloat16, "bf16")],
)
def test_states_stay_close(kind, merge, dtype, precision, model_type):
    model = tiny_model(dtype, **WIDE, model_type=model_type)
    expected = states_of(model, precision=precision)
    if merge:
        merge_projections(model)
    quantize_weights(model, kind)
    found = states_of(model, precision=precision)
    assert found.dtype == expected.dtype
    least = {"int8": 0.999, "float8": 0.99}[kind]
    assert cosines(found, expected).mean() > least
    with torch.no_grad():
        assert model.language.head(found).isfinite().all()


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cast_first", [True, False])
def test_weights_are_cast_once_before_or_after(kind, cast_first, model_type):
    model = tiny_model(**WIDE, model_type=model_type)
    expected = states_of(model, precision="bf16")
    merge_projections(model)
    if cast_first:
        cast_weights(model, torch.bfloat16)
    quantize_weights(model, kind)
    if not cast_first:
        cast_weights(model, torch.bfloat16)
    assert model.projector.linear_1.weight.dtype == torch.bfloat16
    assert cosines(states_of(model, precision="bf16"), expected).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_is_added_in_the_dtype_of_autocast(kind):
    model = tiny_model(**WIDE, model_type="qwen2")
    layer = model.language.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 64)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    quantize_weights(model, kind)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert cosines(found, expected).min() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_take_half_the_memory_of_bfloat16(kind):
    model = tiny_model(torch.bfloat16, **WIDE)
    merge_projections(model)
    before = deepcopy(model)
    quantize_weights(model, kind)
    blocks, head = model.language.model.layers, model.language.lm_head
    assert stored_bytes(blocks) < 0.55 * stored_bytes(before.language.model.layers)
    assert stored_bytes(head) < 0.55 * stored_bytes(before.language.lm_head)
    for left in ("projector", "vision_head", "language.model.embed_tokens", "language.model.norm"):
        new, old = (m.get_submodule(left).state_dict() for m in (model, before))
        assert all(torch.equal(new[name], old[name]) for name in old)


def test_a_head_that_is_the_token_table_stays():
    model = tiny_model(tie_word_embeddings=True)
    table = model.language.output_weight
    quantize_weights(model, "int8")
    assert model.language.output_weight is table and type(table) is torch.nn.Parameter


@pytest.mark.parametrize("merge", [True, False])
def test_it_cannot_be_saved(tmp_path, merge):
    model = tiny_model()
    if merge:
        merge_projections(model)
    quantize_weights(model, "int8")
    with pytest.raises(UserError, match="weights in 8 bits cannot be saved"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_cannot_go_together_is_refused():
    check_weights("", "fp8", CPU)
    for kind in KINDS:
        check_weights(kind, "bf16", CPU)
        with pytest.raises(UserError, match=f"weights {kind}: precision fp8 rounds weights itself"):
            check_weights(kind, "fp8", CPU)
    with pytest.raises(UserError, match="weights: expected one of int8, float8, got 'int4'"):
        quantize_weights(tiny_model(), "int4")
    converted = tiny_model(**WIDE)
    convert_to_float8(converted, "native")
    with pytest.raises(UserError, match="q_proj is converted already, to Float8Linear"):
        quantize_weights(converted, "int8")
    quantized = tiny_model()
    quantize_weights(quantized, "int8")
    with pytest.raises(ValueError, match="q_proj: expected a plain linear layer"):
        merge_projections(quantized)


def test_where_torchao_is_absent_or_fails_a_sentence_says_so(monkeypatch):
    import torchao.quantization

    def fail(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(torchao.quantization, "quantize_", fail)
    with pytest.raises(UserError, match=r"weights float8: .*on cpu \(RuntimeError: no kernel\)$"):
        quantize_weights(tiny_model(), "float8")
    monkeypatch.delattr(torchao.quantization, "Int8WeightOnlyConfig")
    with pytest.raises(UserError, match="this version has no torchao.quantization.Int8Weight"):
        check_weights("int8", "fp32", CPU)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="weights int8: torchao cannot be used here"):
        check_weights("int8", "fp32", CPU)
    assert not check_weights("", "fp32", CPU)


def test_nothing_of_the_process_is_set(monkeypatch):
    before = torch.get_float32_matmul_precision()
    quantize_weights(tiny_model(), "int8")
    assert torch.get_float32_matmul_precision() == before
