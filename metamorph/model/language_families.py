"""The language models that `Llama` computes, by the model_type of their config.json.

All are one decoder. They differ by a bias, a norm, and by what transformers takes for a key that a
file does not have.
"""

from dataclasses import dataclass, field
from typing import Any

from metamorph.errors import UserError, shown


@dataclass(frozen=True)
class Family:
    """One of them. `settings` are keys of its config.json that say what is computed, with the one
    value that is served; `absent` is what transformers takes for keys that are not there, where it
    is more than `LanguageConfig` would."""

    architecture: str
    has_qkv_bias: bool = False  # in the products of queries, keys and values, not of the output
    has_qk_norm: bool = False  # of each head of queries and keys, before they are rotated
    settings: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, Any] = field(default_factory=dict)


LLAMA = "llama"  # without a model_type, too
FAMILIES = {
    LLAMA: Family("LlamaForCausalLM", settings={"attention_bias": False, "mlp_bias": False}),
    "mistral": Family(
        "MistralForCausalLM",
        settings={"sliding_window": None},
        absent={
            "sliding_window": 4096,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        has_qkv_bias=True,
        settings={"use_sliding_window": False},
        absent={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        has_qk_norm=True,
        settings={"attention_bias": False, "use_sliding_window": False},
        absent={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    ),
}


def family_of(model_type: Any) -> Family:
    """Raises `UserError` for a model of another type."""
    if model_type not in (served := tuple(FAMILIES)):  # whatever it is: a list has no hash
        raise UserError(
            f"language config: model_type is {shown(model_type)}, but only "
            f"{', '.join(served[:-1])} and {served[-1]} are served"
        )
    return FAMILIES[model_type]


def with_defaults(data: dict) -> dict:
    """A config.json with the keys that it lacks, where its family takes more for them than
    `LanguageConfig` does. Raises `UserError` for another family, and for an activation, a bias or a
    window that this decoder does not compute."""
    family = family_of(data.get("model_type", LLAMA))
    data = family.absent | data
    for key, expected in {"hidden_act": "silu", **family.settings}.items():
        if data.get(key, expected) != expected:
            wanted = "null" if expected is None else repr(expected)
            raise UserError(
                f"language config: {key} is {shown(data[key])}, but only {wanted} is supported"
            )
    layers = data.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise UserError(
            f"language config: layer_types is {shown(layers)}, but only full_attention is supported"
        )
    return data
