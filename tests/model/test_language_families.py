"""Every family of language models beside transformers' on random tiny models, and back to them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from metamorph.errors import UserError
from metamorph.model import LanguageConfig, Llama
from metamorph.model.language_families import FAMILIES
from metamorph.model.outline import public_sizes
from tests.model.tiny_languages import LLAMA3, SIZES, official_model, states_of

MODELS = {  # of hub models, what is special in their config.json
    "Llama 3.1": {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "SmolLM2": {"model_type": "llama", "tie_word_embeddings": True, "rope_theta": 100000.0},
    "Mistral 7B v0.3": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1000000.0},
    "Mistral Nemo": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    "Qwen2.5 0.5B": {
        "model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0,
        "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 1,
    },
    "Qwen2.5 7B": {"model_type": "qwen2", "sliding_window": None, "rms_norm_eps": 1e-2},
    "Qwen3 0.6B": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "Qwen3 8B": {"model_type": "qwen3", "head_dim": 8, "rope_theta": 1000000.0},
}  # fmt: skip
every_model = pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)


def logits_of(model: Llama, token_ids: torch.Tensor) -> torch.Tensor:
    return model.head(states_of(model, token_ids))


@every_model
def test_logits_are_those_of_transformers_there_and_back(tmp_path, changes):
    official = official_model(changes)
    official.save_pretrained(tmp_path / "official")
    ours = Llama.from_pretrained(tmp_path / "official")
    token_ids = torch.randint(0, 61, (100,))
    with torch.no_grad():
        expected = official(token_ids[None]).logits[0]
        # Of sums of up to 48 terms, ten of them one after another.
        torch.testing.assert_close(logits_of(ours, token_ids), expected, atol=3e-5, rtol=1e-5)

    ours.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["model_type"] == changes["model_type"]
    assert written["architectures"] == [type(official).__name__]
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(again) is type(official) and not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(again(token_ids[None]).logits[0], expected)


@every_model
def test_what_was_read_is_what_is_written(tmp_path, changes):
    official_model(changes).save_pretrained(tmp_path / "official")
    ours = Llama.from_pretrained(tmp_path / "official")
    ours.save_pretrained(tmp_path / "ours")
    again = Llama.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    assert LanguageConfig.from_dict(ours.config.to_dict()) == ours.config
    expected = ours.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(again.state_dict()[name], expected[name]) for name in expected)


def test_a_llama_is_written_as_before_there_were_others():
    """Folders that are there stay equal, byte for byte."""
    written = LanguageConfig(**SIZES).to_dict()
    assert list(written)[:6] == [
        "architectures", "model_type", "hidden_act", "attention_bias", "mlp_bias", "hidden_size",
    ]  # fmt: skip
    assert list(written)[-1] == "max_position_embeddings"


LACKING = st.sets(
    st.sampled_from(["num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta"])
)


@given(st.sampled_from(["llama", "qwen2", "qwen3"]), LACKING)
@settings(max_examples=25)
def test_a_key_that_is_not_there_is_what_transformers_takes_for_it(model_type, lacking):
    sizes = SIZES | {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 64}
    sizes |= {"max_position_embeddings": 99, "rope_theta": 5.0}
    left = {key: value for key, value in sizes.items() if key not in lacking}
    ours = LanguageConfig.from_dict({"model_type": model_type} | left)
    theirs = AutoConfig.for_model(model_type, **left)
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.head_dim == getattr(theirs, "head_dim", 4096 // 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3', but only llama, mistral, qwen2 and qw"),
        ({"model_type": "smollm3"}, "'smollm3', but only llama, mistral, qwen2 and qwen3 are serv"),
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe', but only llama, mistral, qwen2"),
        ({"model_type": ["qwen2"]}, r"model_type is \['qwen2'\], but only llama"),
        (
            {"model_type": "mistral", "sliding_window": 4096},
            "sliding_window is 4096.* only null is",
        ),
        ({"model_type": "mistral"}, "sliding_window is 4096, but only null is supported"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is .*'sliding_attention'.*but only full_attention is supported",
        ),
        ({"model_type": "qwen3", "layer_types": 1}, "layer_types is 1, but only full_attention"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias is True, but only False is supp"),
        ({"model_type": "qwen2", "hidden_act": "gelu"}, "hidden_act is 'gelu', but only 'silu'"),
        (
            {"model_type": "qwen3", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "only 'llama3' is supported, got 'yarn'",
        ),
        (
            {"model_type": "qwen2", "rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
            "only 'llama3' is supported, got 'mrope'",
        ),
        (
            {"model_type": "qwen3", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters of each kind of layer are not supported",
        ),
    ],
)
def test_what_is_not_served_is_named(change, message):
    with pytest.raises(UserError, match=message):
        LanguageConfig.from_dict(SIZES | change)


def test_a_bias_that_the_family_does_not_have_is_refused(tmp_path):
    """As transformers saves a Llama with biases, but for a config.json that says it has none."""
    official_model({"model_type": "llama", "attention_bias": True}).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"attention_bias": False}))
    with pytest.raises(UserError, match="k_proj.bias' of shape .* belongs to no part of the model"):
        Llama.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen3-0.6B", 596_049_920),
        ("Qwen3-8B", 8_190_735_360),
        ("Mistral-7B-Instruct-v0.3", 7_248_023_552),
    ],
)
def test_public_models_have_as_many_parameters_as_published(name, parameters):
    with torch.device("meta"):
        model = Llama(LanguageConfig.from_dict(public_sizes("model.language", name)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("model_type", FAMILIES)
def test_new_models_begin_as_those_of_transformers_do(model_type):
    """Biases at 0, norms at 1, matrices small."""
    model = Llama(LanguageConfig(**SIZES, model_type=model_type))
    found = {name.rpartition(".")[2]: [] for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            expected = 0.0 if name.endswith(".bias") else 1.0
            assert bool((parameter == expected).all()), name
        else:
            assert 0.01 < parameter.std() < 0.03, name
        found[name.rpartition(".")[2]].append(name)
    biases = {name.split(".")[-2] for name in found.get("bias", [])}
    assert biases == ({"q_proj", "k_proj", "v_proj"} if model_type == "qwen2" else set())
    norms = [name for name in found["weight"] if name.endswith(("q_norm.weight", "k_norm.weight"))]
    assert len(norms) == (4 if model_type == "qwen3" else 0)
