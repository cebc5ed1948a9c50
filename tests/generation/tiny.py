"""A tiny model with random weights, prompts for it, and a slow loop to compare with."""

import torch
import torch.nn.functional as F

from metamorph.generation import ImageSegment, Prompt
from metamorph.model import LanguageConfig, MetaMorph, MetaMorphConfig
from metamorph_kernels import interval_attention, key_intervals

START, END, EOS, PAD = 8, 9, 10, 11
TOKENS, WIDTH = 4, 6


def tiny_model(seed: int, model_type: str = "llama") -> MetaMorph:
    torch.manual_seed(seed)
    language = LanguageConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=12,
        model_type=model_type,
    )
    config = MetaMorphConfig(
        language=language,
        visual_width=WIDTH,
        grid=2,
        image_start_id=START,
        image_end_id=END,
        eos_ids=[EOS],
        pad_id=PAD,
    )
    model = MetaMorph(config)
    for parameter in model.parameters():  # large, so that every step depends on all before it
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
    return model


def image_prompt(before: list[int], images: int, after: list[int]) -> Prompt:
    token_ids, positions = list(before), []
    for _ in range(images):
        token_ids.append(START)
        positions += range(len(token_ids), len(token_ids) + TOKENS)
        token_ids += [PAD] * TOKENS + [END]
    features = F.normalize(torch.randn(images, TOKENS, WIDTH), dim=-1)
    keys = [int(image.double().sum().mul(1e6).abs()) for image in features]
    return Prompt(token_ids + after, positions, features, image_keys=keys)


def mixed_prompts() -> list[Prompt]:
    return [
        Prompt([1]),
        Prompt([1, 2, 3, 4, 5, 6, 7]),
        image_prompt([1, 2], 1, [3]),
        image_prompt([], 2, [3, 5, 7, 1, 2, 6]),
        Prompt([4, 2, START]),
        Prompt([6, 6]),
    ]


@torch.no_grad()
def naive(model: MetaMorph, prompt: Prompt, max_new_tokens: int) -> dict:
    """One prompt, no cache, every rule written out once more."""
    features = torch.zeros(0, TOKENS, WIDTH) if prompt.features is None else prompt.features
    places = torch.tensor(prompt.visual_positions, dtype=torch.int64)
    inputs = model.embed(torch.tensor(prompt.token_ids), features, places)  # [prefix, H]
    order, images, steps, reason = [], [], 0, "length"
    vectors = [] if prompt.token_ids[-1] == START else None  # of the image under way
    if vectors is not None and TOKENS + 1 > max_new_tokens:
        max_new_tokens = 0
    while steps < max_new_tokens and reason == "length":
        forwards = len(inputs)
        state = last_state(model, inputs)
        if vectors is not None and len(vectors) < TOKENS:
            vector = model.vision_head(state)[0]
            vectors.append(vector / vector.norm())
            fed = model.projector(vectors[-1][None])
        else:
            if vectors is None:
                logits, token_ids = model.language.head(state)[0].topk(2)
                assert logits[0] - logits[1] > 1e-3  # so that no rounding chooses another token
                token_id = token_ids[0].item()
            else:
                token_id = END
                images.append(torch.stack(vectors))
                order.append("image")
                vectors = None
            if token_id == START:
                if steps + 1 + TOKENS + 1 > max_new_tokens:
                    break
                vectors = []
            if token_id == EOS:
                reason = "stop"
            order.append(token_id)
            fed = model.language.model.embed_tokens.weight[token_id][None]
        steps += 1
        inputs = torch.cat((inputs, fed))
    return {
        "order": order,
        "images": images,
        "finish_reason": reason,
        "steps": steps,
        "token_forwards": forwards if max_new_tokens else len(inputs),
    }


def last_state(model: MetaMorph, inputs: torch.Tensor) -> torch.Tensor:
    intervals = key_intervals([len(inputs)])

    def attention(layer_index, q, k, v):
        return interval_attention(q, k, v, intervals)

    return model.language(inputs, torch.arange(len(inputs)), attention)[-1:]


def order_of(generation) -> list:
    order = []
    for segment in generation.segments:
        order += ["image"] if isinstance(segment, ImageSegment) else segment.token_ids
    return order


def check_same(generation, expected: dict) -> None:
    """A Generation beside what `naive` says of its prompt."""
    assert order_of(generation) == expected["order"]
    for field in ("finish_reason", "steps", "token_forwards"):
        assert getattr(generation, field) == expected[field], field
    assert len(generation.images) == len(expected["images"])
    for image, other in zip(generation.images, expected["images"], strict=True):
        # Of unit vectors, when each of 30 steps adds the rounding of sums of 40 terms: 7e-5.
        torch.testing.assert_close(image, other, atol=1e-4, rtol=0)
