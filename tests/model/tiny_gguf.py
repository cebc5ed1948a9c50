"""A GGUF file of a small random Llama, as llama.cpp's converter lays it out."""

from pathlib import Path

import gguf
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from metamorph.model.gguf_import import LAYER_PARTS, PARTS

BYTES = sorted(ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "o w", "ow n"]
TOKENS = [*SPECIAL, *BYTES, "ĠĠ", "ow", "own", "brown"]  # of which no merges make the last one
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": len(TOKENS), "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "max_position_embeddings": 512,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llama(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | settings)).eval()
    for parameter in model.parameters():  # larger than usual, so that mistakes show
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model


def metadata_of(model: LlamaForCausalLM) -> dict:
    """Key to value, with the type of those that no plain number or text has by itself."""
    config = model.config
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.license": "apache-2.0",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": SIZES["rope_theta"],
        "llama.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def tensors_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The parameters by GGUF's names, rows of queries and keys in GGUF's order."""
    config, found = model.config, {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    old = {new: name for name, new in (PARTS | LAYER_PARTS).items()}
    for name, parameter in model.named_parameters():
        *place, part = name.removesuffix(".weight").split("model.layers.")[-1].split(".", 1)
        blk = f"blk.{place[0]}." if name.startswith("model.layers.") else ""
        part = part if blk else name.removesuffix(".weight")
        weight = parameter.detach()
        count = heads.get(part.rpartition(".")[2])
        if count:
            weight = weight.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(weight.shape)
        found[f"{blk}{old[part]}.weight"] = weight
    return found


def write_gguf(path: Path, metadata: dict, tensors: dict, kind: str = "F32") -> Path:
    """Matrices of the type `kind`, vectors as fp32. None in `metadata` leaves a key out."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
    add |= {bool: writer.add_bool, list: writer.add_array}
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            add[type(value)](key, value)
    for name, tensor in tensors.items():
        number = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        data = gguf.quants.quantize(tensor.float().numpy(), number)
        writer.add_tensor(name, data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
