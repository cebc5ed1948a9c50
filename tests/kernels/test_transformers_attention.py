"""Tiny random models give the same through interval attention as through their own."""

import sys

import pytest
import torch

from metamorph_kernels import register_with_transformers, transformers_attention
from metamorph_kernels.transformers_attention import NAME, batch_attention, batch_mask

transformers = pytest.importorskip("transformers")
from transformers.masking_utils import causal_mask_function  # noqa: E402

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def registered():
    assert register_with_transformers() == NAME


def made(model_class, config, seed=0):
    torch.manual_seed(seed)
    return model_class(config).double().train()


def llama(**more):
    return made(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES | more))


def mistral(**more):
    config = transformers.MistralConfig(**SIZES, sliding_window=4, **more)
    return made(transformers.MistralForCausalLM, config)


def tokens(batch, length):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(1))


def logits_and_gradients(model, implementation, real=None, **inputs):
    """Logits of the real tokens, then the gradients of all weights."""
    model.set_attn_implementation(implementation)
    model.zero_grad()
    logits = model(use_cache=False, **inputs).logits
    if real is not None:
        logits = logits[real.bool()]
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    logits.backward(cotangent.double())
    return [logits.detach()] + [weight.grad for weight in model.parameters()]


def assert_same(model, real=None, **inputs):
    ours = logits_and_gradients(model, NAME, real, **inputs)
    theirs = logits_and_gradients(model, "sdpa", real, **inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


PADDING = {
    "none": torch.ones(3, 12),
    "right": (torch.arange(12) < torch.tensor([[12], [7], [1]])).long(),
    "left": (torch.arange(12) >= torch.tensor([[0], [5], [11]])).long(),
    "both": (torch.arange(12) - 3).abs()[None].lt(torch.tensor([[4], [2], [1]])).long(),
}


@pytest.mark.parametrize("padding", list(PADDING))
@pytest.mark.parametrize("model", [llama, mistral])
def test_padding(model, padding):
    real = PADDING[padding]
    assert_same(model(), real, input_ids=tokens(3, 12), attention_mask=real)


@pytest.mark.parametrize("model", [llama, mistral])
def test_plain_and_packed_by_position_ids(model):
    model = model()
    assert_same(model, input_ids=tokens(2, 11))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    assert_same(model, input_ids=tokens(2, 11), position_ids=positions)
    packed = logits_and_gradients(model, NAME, input_ids=tokens(2, 11), position_ids=positions)
    plain = logits_and_gradients(model, NAME, input_ids=tokens(2, 11))
    assert not torch.allclose(packed[0], plain[0])


def test_checkpointed_training_and_a_cache_that_is_only_filled():
    model = llama()
    inputs = {"input_ids": tokens(2, 9), "attention_mask": PADDING["left"][:2, 3:]}
    real = inputs["attention_mask"]
    plain = logits_and_gradients(model, NAME, real, **inputs)
    model.gradient_checkpointing_enable()
    checkpointed = logits_and_gradients(model, NAME, real, **inputs)
    torch.testing.assert_close(checkpointed, plain)
    model.gradient_checkpointing_disable()
    filled = model(**inputs, use_cache=True)
    assert filled.past_key_values.get_seq_length() == 9
    torch.testing.assert_close(filled.logits[real.bool()], plain[0])


def test_paligemma_prefix_with_its_picture():
    config = transformers.PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config={"model_type": "gemma", **SIZES},
        image_token_index=49,
        projection_dim=32,
    )
    model = made(transformers.PaliGemmaForConditionalGeneration, config)
    input_ids = tokens(2, 12) % 49
    input_ids[:, 1:5] = 49  # 4 tokens of a picture
    real = torch.ones(2, 12, dtype=torch.long)
    real[1, 0] = 0
    suffix = torch.zeros(2, 12, dtype=torch.long)
    suffix[:, 8:] = 1
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3)).double()
    assert_same(
        model,
        real,
        input_ids=input_ids,
        attention_mask=real,
        token_type_ids=suffix,
        pixel_values=pixels,
    )


def test_gemma3_sliding_and_full_layers():
    config = transformers.Gemma3TextConfig(
        **SIZES, sliding_window=3, layer_types=["sliding_attention", "full_attention"]
    )
    model = made(transformers.Gemma3ForCausalLM, config)
    assert_same(model, PADDING["right"], input_ids=tokens(3, 12), attention_mask=PADDING["right"])


def test_one_mask_a_forward(monkeypatch):
    made_of = []
    rows = transformers_attention.intervals_from_rows
    monkeypatch.setattr(
        transformers_attention,
        "intervals_from_rows",
        lambda *bounds: made_of.append(bounds) or rows(*bounds),
    )
    model = llama()
    model.set_attn_implementation(NAME)
    model(input_ids=tokens(3, 12), attention_mask=PADDING["left"])
    assert len(made_of) == 1


def test_from_pretrained_and_generate_without_cache(tmp_path):
    llama().save_pretrained(tmp_path)
    prompt = {"input_ids": tokens(2, 5), "attention_mask": PADDING["left"][:2, 4:9]}
    texts = []
    for name in (NAME, "sdpa"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_implementation=name
        )
        assert model.config._attn_implementation == name
        options = {"max_new_tokens": 4, "do_sample": False, "use_cache": False}
        options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
        generated = model.generate(**prompt, **options)
        best, second = torch.stack(generated.logits).topk(2).values.unbind(-1)
        assert (best - second).min() > 1e-3  # so that no rounding chooses another token
        texts.append(generated.sequences)
    assert torch.equal(*texts)


def test_compiled_equals_eager():
    model = llama(num_hidden_layers=1)
    model.set_attn_implementation(NAME)
    compiled = torch.compile(model, backend="aot_eager")
    real = PADDING["left"]
    inputs = {"input_ids": tokens(3, 12), "attention_mask": real, "use_cache": False}
    ours, eager = (f(**inputs).logits[real.bool()] for f in (compiled, model))
    torch.testing.assert_close(ours, eager)


def test_cached_decoding():
    model = llama(attn_implementation=NAME)
    cache = model(input_ids=tokens(1, 5), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=f"{NAME} has no cached decoding.*1 queries and 6 keys"):
        model(input_ids=tokens(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=f"{NAME} has no cached decoding"):
        model.generate(tokens(1, 5), max_new_tokens=3, pad_token_id=0)
    for offsets in ((3, 3), (torch.tensor(3), 0)):
        with pytest.raises(ValueError, match="no cached decoding: the queries start at 3"):
            batch_mask(1, 4, 4, *offsets, mask_function=causal_mask_function)


def test_dropout():
    model = llama(attention_dropout=0.1, attn_implementation=NAME)
    with pytest.raises(ValueError, match="dropout: .*got 0.1"):
        model(input_ids=tokens(1, 5))
    assert model.eval()(input_ids=tokens(1, 5)).logits.isfinite().all()


def test_masks_made_elsewhere():
    model = llama(attn_implementation=NAME)
    with pytest.raises(ValueError, match=r"attention_mask: .*prepared Tensor \[1, 1, 5, 5\]"):
        model(input_ids=tokens(1, 5), attention_mask=torch.ones(1, 1, 5, 5))
    with pytest.raises(ValueError, match=r"attention_mask: .*expected \[2, 5\], got \[2, 3\]"):
        batch_mask(2, 5, 5, mask_function=causal_mask_function, attention_mask=torch.ones(2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"softcap": 30.0}, "softcap: "),
        ({"s_aux": torch.zeros(2)}, "s_aux: "),
        ({"position_bias": torch.zeros(1, 2, 3, 3)}, "position_bias: "),
        ({"output_attentions": True}, "output_attentions: "),
        ({"key": torch.ones(1, 2, 4, 8)}, "got 3 queries and 4 keys"),
        ({"attention_mask": None}, "attention_mask: .*None and nothing says"),
        (
            {"attention_mask": batch_mask(3, 1, 1, mask_function=causal_mask_function)},
            r"the mask of \[B, T\] = \[1, 3\], got that of \[3, 1\]",
        ),
    ],
)
def test_attention_function_refuses(change, words):
    arguments = {name: torch.ones(1, 2, 3, 8) for name in ("query", "key", "value")}
    arguments["attention_mask"] = batch_mask(1, 3, 3, mask_function=causal_mask_function)
    out, _ = batch_attention(torch.nn.Identity(), **arguments, softcap=None)
    torch.testing.assert_close(out, torch.ones(1, 3, 2, 8))
    with pytest.raises(ValueError, match=words):
        batch_attention(torch.nn.Identity(), **arguments | change)


@pytest.mark.parametrize("causal", [True, False])
def test_no_mask_means_what_is_causal_says(causal):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=generator).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=0.4
    ).transpose(1, 2)
    module = torch.nn.Identity()
    out, weights = batch_attention(module, query, key, value, None, 0.0, 0.4, is_causal=causal)
    torch.testing.assert_close(out, expected)
    module.is_causal = causal
    torch.testing.assert_close(batch_attention(module, query, key, value, None, 0, 0.4)[0], out)
    assert weights is None


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="register_with_transformers needs transformers 5"):
        register_with_transformers()
