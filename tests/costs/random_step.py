"""Random tiny models, and forward and backward over a packed row of random tokens and pictures."""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import SiglipVisionConfig

from metamorph.costs.flops import Workload, causal_pairs
from metamorph.model.language_config import LanguageConfig
from metamorph.model.siglip import SiglipEncoder
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph_kernels import key_intervals, linear_cross_entropy

STAGES = ("language", "align", "instruct")


def random_model(seed: int, layers: int = 3, model_type: str = "llama") -> MetaMorph:
    """Widths that differ wherever they may, and an encoder of which pooling reads only a part."""
    choose = Random(seed)
    torch.manual_seed(seed)
    key_heads = choose.choice((1, 2))
    language = LanguageConfig(
        hidden_size=8 * choose.randint(3, 6), intermediate_size=8 * choose.randint(5, 9),
        num_hidden_layers=layers, num_attention_heads=key_heads * choose.choice((1, 3)),
        num_key_value_heads=key_heads, head_dim=8 * choose.choice((1, 2)),
        vocab_size=choose.randint(70, 99), tie_word_embeddings=choose.choice((True, False)),
        model_type=model_type,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=choose.randint(30, 40), num_hidden_layers=2,
        num_attention_heads=2, image_size=36, patch_size=4,
    )  # fmt: skip
    config = MetaMorphConfig(
        language, visual_width=24, grid=2, image_start_id=1, image_end_id=2, eos_ids=[0], pad_id=0,
        projector_hidden_size=choose.randint(20, 40),
        vision_head_hidden_size=choose.randint(20, 40),
    )  # fmt: skip
    return MetaMorph(config, vision=SiglipEncoder(vision, config.grid))


@dataclass(frozen=True)
class RandomRow:
    """Documents of some lengths; the pictures lie at the start, those that are drawn first."""

    lengths: tuple[int, ...]
    images: int
    drawn: int
    text_targets: int

    def workload(self, model: MetaMorph) -> Workload:
        drawn = self.drawn * model.config.tokens_per_image
        pairs = causal_pairs(self.lengths)
        return Workload(sum(self.lengths), pairs, self.text_targets, drawn, self.images)

    def loss(self, model: MetaMorph, features: Tensor) -> Tensor:
        """Text and visual loss of features [images, tokens, C], both summed."""
        length, config = sum(self.lengths), model.config
        device = features.device
        positions = torch.cat([torch.arange(n) for n in self.lengths]).to(device)
        visual = torch.arange(self.images * config.tokens_per_image, device=device)
        token_ids = torch.arange(length, device=device) % config.language.vocab_size
        intervals = key_intervals(list(self.lengths), device=device)
        states = model(token_ids, positions, intervals, features, visual)
        labels = token_ids[: self.text_targets]
        rows = torch.arange(length - self.text_targets, length, device=device)
        text = linear_cross_entropy(
            states.index_select(0, rows), model.language.output_weight, labels, reduction="sum"
        )
        drawn = visual[: self.drawn * config.tokens_per_image]
        targets = features.flatten(0, 1).index_select(0, drawn)
        return text + model.visual_loss(states.index_select(0, drawn), targets)


ROW = RandomRow(lengths=(30, 30, 7, 50), images=5, drawn=3, text_targets=41)
