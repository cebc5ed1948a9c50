"""Random tiny language models of transformers, and what ours computes of a document."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from metamorph.model import Llama
from metamorph_kernels import interval_attention, key_intervals

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def official_model(settings: dict):
    """Of transformers, a Llama by default, with weights that are larger than usual, so that
    mistakes show."""
    torch.manual_seed(0)
    kind = {"model_type": "llama", "max_position_embeddings": 512, "rope_theta": 10000.0}
    kind |= SIZES | settings
    # A copy, for transformers adds to what is within.
    config = AutoConfig.for_model(kind.pop("model_type"), **json.loads(json.dumps(kind)))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model


def states_of(model: Llama, token_ids: torch.Tensor) -> torch.Tensor:
    intervals = key_intervals([len(token_ids)])
    return model(
        model.model.embed_tokens(token_ids),
        torch.arange(len(token_ids)),
        lambda layer, q, k, v: interval_attention(q, k, v, intervals),
    )
