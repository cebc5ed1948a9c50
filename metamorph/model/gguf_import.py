"""A Llama of a GGUF file as a Hugging Face folder: config, safetensors, tokenizer, stop tokens."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamorph.disk import temporary_beside
from metamorph.errors import UserError, shown, within
from metamorph.model.gguf_file import GGUFFile, GGUFTensor
from metamorph.model.gguf_tokenizer import stop_ids, token_id, tokenizer_of
from metamorph.model.language import Llama, inverse_frequencies
from metamorph.model.language_config import LanguageConfig
from metamorph.model.weights import write_json, write_tensors, write_tokenizer

PARTS = {  # GGUF: Hugging Face
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"  # [D / 2], by which Llama 3.1's scaling divides the frequencies
# What all Llamas since 3.1 have beside their factor, which the file does not say.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def import_gguf(path: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write a GGUF file's model as a Hugging Face folder, which appears whole or not at all.

    Weights become bfloat16 if all matrices of the file are, else float32, in which what blocks
    stand for is exact. One file of safetensors is in memory at a time.

    Returns the file's metadata. Raises `UserError`: damaged, of another architecture than Llama, a
    tokenizer that is not known, no package gguf; `OSError` if `folder` holds something.
    """
    folder = Path(folder)
    file = GGUFFile(path)
    with within(file.path):
        config = language_config(file)
        sources = _sources(file, config)
        tokenizer = tokenizer_of(file.metadata)
        if len(tokenizer) > config.vocab_size:
            raise UserError(f"{len(tokenizer)} tokens, but {config.vocab_size} rows for them")
        special = {
            "bos_token_id": token_id(file.metadata, "bos_token_id"),
            "eos_token_id": stop_ids(file.metadata),
            "pad_token_id": token_id(file.metadata, "padding_token_id"),
        }
    special = {name: value for name, value in special.items() if value not in (None, [])}
    kinds = {tensor.kind for tensor in sources.values() if len(tensor.shape) > 1}
    dtype = torch.bfloat16 if kinds == {"BF16"} else torch.float32
    # Without memory: each is decoded when it is written.
    outline = {
        name: torch.empty(tensor.shape, dtype=dtype, device="meta")
        for name, tensor in sources.items()
    }
    names = {tensor: name for name, tensor in outline.items()}

    def whole(tensor: Tensor) -> Tensor:
        name = names[tensor]
        return _decoded(file, name, sources[name], config).to(dtype)

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    try:
        with within(file.path):
            write_tensors(temporary, outline, whole=whole)
        settings = {**config.to_dict(), **special, "dtype": str(dtype).removeprefix("torch.")}
        write_json(temporary / "config.json", settings)
        write_json(temporary / "generation_config.json", special)
        write_tokenizer(temporary, tokenizer)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return file.metadata


def language_config(file: GGUFFile) -> LanguageConfig:
    """The Llama's settings. Raises `UserError` for another architecture, and for what is no part
    of this Llama: experts, other scalings of positions, partial rotation."""
    data = file.metadata
    architecture = data.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"its architecture is {shown(architecture)}, expected 'llama'")
    if data.get("llama.expert_count"):
        raise UserError("a mixture of experts, which this Llama has not")
    _check_unscaled(data)
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise UserError("the tensor 'token_embd.weight' is missing, or no matrix")
    keys = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
        "max_position_embeddings": "context_length",
    }
    values = {name: data[f"llama.{key}"] for name, key in keys.items() if f"llama.{key}" in data}
    for name in ("rms_norm_eps", "rope_theta"):
        if isinstance(values.get(name), float):
            values[name] = float(str(np.float32(values[name])))  # 1e-05, not 9.999999747378752e-06
    config = LanguageConfig.from_dict(
        values
        | {"vocab_size": embeddings.shape[0]}
        | {"tie_word_embeddings": "output.weight" not in file.tensors}
    )
    for key in ("rope.dimension_count", "attention.value_length"):
        width = data.get(f"llama.{key}", config.head_dim)
        if width != config.head_dim:
            raise UserError(f"llama.{key} is {shown(width)}, but a head has {config.head_dim}")
    if ROPE_FACTORS in file.tensors:
        config.rope_scaling = _scaling(file, config)
    return config


def _check_unscaled(data: dict[str, Any]) -> None:
    """Raises `UserError` where llama.cpp would scale positions by these keys. 0 is none too."""
    scaling = data.get("llama.rope.scaling.type", "linear")  # as llama.cpp takes one not named
    if scaling not in ("none", "linear"):
        raise UserError(f"llama.rope.scaling.type is {shown(scaling)}, which this Llama has not")
    keys = ["rope.scaling.attn_factor"]
    if scaling == "linear":
        keys += ["rope.scaling.factor", "rope.scale_linear"]  # the latter in old files
    for key in keys:
        factor = data.get(f"llama.{key}", 1)
        if factor not in (0, 1):
            raise UserError(f"llama.{key} is {shown(factor)}, a scaling that this Llama has not")


def _scaling(file: GGUFFile, config: LanguageConfig) -> dict[str, Any] | None:
    """The Llama-3 scaling whose factors these are, None if all are 1."""
    factors = file.read(_of_shape(file, ROPE_FACTORS, (config.head_dim // 2,)))
    if (factors == 1).all():
        return None
    plain = inverse_frequencies(config, factors.device)
    config = replace(config, rope_scaling={**LLAMA3_SCALING, "factor": float(factors.max())})
    scaled = inverse_frequencies(config, factors.device)
    if not torch.allclose(plain / factors, scaled, rtol=1e-4, atol=0):  # down to 1e-8
        raise UserError(f"{ROPE_FACTORS} holds another scaling of positions than Llama 3's")
    return config.rope_scaling


def _sources(file: GGUFFile, config: LanguageConfig) -> dict[str, GGUFTensor]:
    """The file's tensor for each of the Llama's parameters, all of the shape that they need."""
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in Llama(config).state_dict().items()}
    parts = {f"{old}.weight": f"{new}.weight" for old, new in PARTS.items()}
    for layer in range(config.num_hidden_layers):
        parts |= {
            f"blk.{layer}.{old}.weight": f"model.layers.{layer}.{new}.weight"
            for old, new in LAYER_PARTS.items()
        }
    found = {new: _of_shape(file, old, shapes[new]) for old, new in parts.items() if new in shapes}
    known = {tensor.name for tensor in found.values()} | {ROPE_FACTORS}
    others = sorted(file.tensors.keys() - known)
    if others:
        raise UserError(f"the tensor {others[0]!r} belongs to no part of this Llama")
    return found


def _of_shape(file: GGUFFile, name: str, shape: tuple[int, ...]) -> GGUFTensor:
    tensor = file.tensors.get(name)
    if tensor is None:
        raise UserError(f"the tensor {name!r} is missing")
    if tensor.shape != shape:
        raise UserError(
            f"the tensor {name!r} has shape {tensor.shape}, but the settings need {shape}"
        )
    return tensor


def _decoded(file: GGUFFile, name: str, source: GGUFTensor, config: LanguageConfig) -> Tensor:
    """A parameter in fp32. llama.cpp rotates elements 2i and 2i + 1 of a head together, and keeps
    the rows of queries and keys in that order; here they are i and i + D / 2."""
    weight = file.read(source)
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        pairs = weight.unflatten(0, (-1, config.head_dim // 2, 2))  # [heads, D / 2, 2, H]
        weight = pairs.transpose(1, 2).reshape(weight.shape)
    return weight
