"""Our Llama beside transformers' on random tiny models, and the round trips between them."""

import json

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from metamorph.errors import UserError
from metamorph.model import LanguageConfig, Llama
from tests.model.tiny_languages import LLAMA3, SIZES, official_model, states_of


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
        {"num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 1, "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    ],
)
def test_logits_equal_transformers(tmp_path, settings):
    official = official_model(settings)
    official.save_pretrained(tmp_path / "official")
    ours = Llama.from_pretrained(tmp_path / "official")
    token_ids = torch.randint(0, 61, (100,))
    with torch.no_grad():
        expected = official(token_ids[None]).logits[0]
        logits = ours.head(states_of(ours, token_ids))
    # Of sums of up to 48 terms, ten of them one after another.
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=1e-5)

    ours.save_pretrained(tmp_path / "ours")
    assert AutoConfig.from_pretrained(tmp_path / "ours").model_type == "llama"
    reloaded, report = LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(reloaded(token_ids[None]).logits[0], expected)


def test_our_folder_round_trips(tmp_path):
    model = Llama(LanguageConfig(**SIZES, rope_scaling=LLAMA3))
    model.save_pretrained(tmp_path)
    again = Llama.from_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_rotary_angles_stay_exact_in_a_bf16_model():
    model = Llama(LanguageConfig(**SIZES, max_position_embeddings=10000)).to(torch.bfloat16)
    seen = []
    model(
        torch.ones(1, 32, dtype=torch.bfloat16),
        torch.tensor([4099]),
        lambda layer, q, k, v: seen.append((q, model.model.layers[0])) or torch.zeros_like(q),
    )
    q, layer = seen[0]
    raw = layer.self_attn.q_proj(layer.input_layernorm(torch.ones(1, 32).bfloat16()))
    raw = raw.view(1, 4, 8).double()
    angles = 4099 / 10000 ** (torch.arange(0, 8, 2).double() / 8)
    expected = raw[..., :4] * angles.cos() - raw[..., 4:] * angles.sin()
    torch.testing.assert_close(q[..., :4].double(), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_start_as_the_mean_of_the_old(tied):
    model = Llama(LanguageConfig(**SIZES, tie_word_embeddings=tied))
    before = model.output_weight.detach().clone()
    model.add_tokens([61, 62])
    assert model.config.vocab_size == 63
    for matrix in (model.output_weight, model.model.embed_tokens.weight):
        assert matrix.shape == (63, 32) and matrix.requires_grad
    torch.testing.assert_close(model.output_weight[:61], before)
    torch.testing.assert_close(model.output_weight[61], before.mean(0))
    torch.testing.assert_close(model.output_weight[62], before.mean(0))
    assert model.head(torch.zeros(1, 32)).shape == (1, 63)


def test_a_new_token_may_lie_within_a_padded_table():
    model = Llama(LanguageConfig(**SIZES))
    before = model.model.embed_tokens.weight.detach().clone()
    model.add_tokens([60])
    after = model.model.embed_tokens.weight
    assert after.shape == (61, 32)
    torch.testing.assert_close(after[60], before[:60].mean(0))


def test_flat_and_nested_rotary_settings_read_alike():
    flat = SIZES | {"rope_theta": 5e5, "rope_scaling": LLAMA3}
    nested = SIZES | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}
    older = SIZES | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}}
    del older["rope_scaling"]["rope_type"]
    configs = [LanguageConfig.from_dict(data) for data in (flat, nested, older)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].rope_theta == 5e5 and configs[0].rope_scaling == LLAMA3
    assert LanguageConfig.from_dict(configs[0].to_dict()) == configs[0]
    unscaled = LanguageConfig.from_dict(SIZES | {"rope_parameters": {"rope_type": "default"}})
    assert unscaled.rope_scaling is None and unscaled.rope_theta == 10000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "only 'llama3'.*'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "'low_freq_factor' is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected at least 1, got 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most 1000, got 1000000000"),
        ({"head_dim": 7}, "head_dim: .*even number, got 7"),
        ({"max_position_embeddings": 0}, "max_position_embeddings: expected at least 1, got 0"),
        ({"rope_theta": -1.0}, "rope_theta: expected a number above 0, got -1.0"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta: expected a number above 0, got 0"),
        ({"rope_theta": float("inf")}, "rope_theta: expected float, got inf"),
        ({"rope_theta": 10**400}, "rope_theta: expected float, got 1000"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps: expected a number of at least 0, got -1e-05"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected float, got nan"),
        (
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "high_freq_factor, 4.0, needs to be above low_freq_factor, 4.0",
        ),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        LanguageConfig.from_dict(SIZES | change)


def test_a_missing_size_is_named():
    sizes = {key: value for key, value in SIZES.items() if key != "hidden_size"}
    with pytest.raises(UserError, match="'hidden_size' is missing"):
        LanguageConfig.from_dict(sizes)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    Llama(LanguageConfig(**SIZES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    message = r"model.safetensors: the tensor 'model.layers.0.mlp.gate_proj.weight' has shape "
    with pytest.raises(UserError, match=message + r"\(48, 32\).*needs \(50, 32\)"):
        Llama.from_pretrained(tmp_path)


def test_redundant_tensors_of_old_exporters_are_ignored(tmp_path):
    from safetensors.torch import load_file, save_file

    model = Llama(LanguageConfig(**SIZES, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    extra = {
        "lm_head.weight": model.output_weight.detach().clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(load_file(path) | extra, path)
    assert "lm_head.weight" not in Llama.from_pretrained(tmp_path).state_dict()


def test_blocks_compile_once_for_all_layers():
    """Layer indices and fresh attention functions must not make a compiled block recompile."""
    torch._dynamo.reset()
    model = Llama(LanguageConfig(**SIZES | {"num_hidden_layers": 4}))
    embeddings = torch.randn(11, 32, requires_grad=True)
    compiles = 0

    def count(graph, inputs):
        nonlocal compiles
        compiles += 1
        return graph.forward

    def run():
        def attention(layer_index, q, k, v):
            return q * 2

        return model(embeddings, torch.arange(11), attention)

    eager = run()
    for layer in model.model.layers:
        layer.compile(backend=count, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(run(), eager)
    assert compiles == 1
