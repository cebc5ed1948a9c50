"""Random models of a few thousand parameters, and what they compute."""

import torch

from metamorph.model import MetaMorph, MetaMorphConfig
from metamorph.model.language_config import LanguageConfig
from metamorph.model.precision import autocast
from metamorph_kernels import interval_attention, key_intervals

CPU = torch.device("cpu")


def tiny_model(dtype=torch.float32, **sizes) -> MetaMorph:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61,
    } | sizes  # fmt: skip
    config = MetaMorphConfig(
        language=LanguageConfig(**settings), visual_width=8, grid=2,
        image_start_id=59, image_end_id=60, eos_ids=[58], pad_id=57,
    )  # fmt: skip
    model = MetaMorph(config).to(dtype).eval()
    for parameter in model.parameters():  # larger than usual, so that mistakes show
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


@torch.no_grad()
def states_of(model: MetaMorph, tokens: int = 12, precision: str = "fp32") -> torch.Tensor:
    """States [T, H] of a row of two documents."""
    ids = torch.randint(57, (tokens,), generator=torch.Generator().manual_seed(1))
    lengths = [tokens - tokens // 3, tokens // 3]
    positions = torch.cat([torch.arange(length) for length in lengths])
    intervals = key_intervals(lengths)
    with autocast(precision, CPU):
        return model.language(
            model.language.model.embed_tokens(ids),
            positions,
            lambda layer, q, k, v: interval_attention(q, k, v, intervals),
        )


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a.float(), b.float(), dim=-1)
