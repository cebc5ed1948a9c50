"""Greedy generation of the official classes: ids, order, vectors, steps and forwards."""

import pytest
import torch

from metamorph.generation import Generation, ImageSegment, Prompt, generate
from tests.model.golden import expectations, golden_model, tensors

CASES = expectations("decode")["cases"]
TOLERANCE = expectations("decode")["tolerance"]["visual_abs"]


def decode_model(grid: int):
    model = golden_model(grid)
    with torch.no_grad():
        model.language.lm_head.weight.copy_(tensors("decode")["weights.lm_head.weight"])
    return model


def order(generation: Generation) -> list:
    emitted = []
    for segment in generation.segments:
        image = isinstance(segment, ImageSegment)
        emitted += ["visual_block"] if image else segment.token_ids
    return emitted


def check(generation: Generation, name: str) -> None:
    expected = CASES[name]
    assert generation.token_ids == expected["emitted_ids"]
    assert order(generation) == expected["emitted_order"]
    assert generation.steps == expected["steps"]
    assert generation.token_forwards == expected["token_forwards_with_kv_cache"]
    assert generation.finish_reason == "stop"
    assert len(generation.images) == expected["images_emitted"]
    for image, vectors in zip(
        generation.images, tensors("decode").get(f"{name}.visual", ()), strict=True
    ):
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, vectors, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_alone(name):
    model = decode_model(int(CASES[name]["tokens_per_image"] ** 0.5))
    (generation,) = generate(model, [Prompt(CASES[name]["prompt_ids"])], max_new_tokens=512)
    check(generation, name)


def test_in_one_batch_with_rows_in_different_modes():
    names = ["text_only", "one_image", "text_only", "one_image"]
    prompts = [Prompt(CASES[name]["prompt_ids"]) for name in names]
    for generation, name in zip(
        generate(decode_model(4), prompts, max_new_tokens=100), names, strict=True
    ):
        check(generation, name)


def test_an_image_that_does_not_fit_is_not_begun():
    """The official loop would return part of the image; we stop before it."""
    model, prompt = decode_model(4), Prompt(CASES["one_image"]["prompt_ids"])
    (short,) = generate(model, [prompt], max_new_tokens=2 + 1 + 16)
    assert (short.token_ids, short.images) == ([160, 170], [])
    assert (short.finish_reason, short.steps) == ("length", 2)
    (whole,) = generate(model, [prompt], max_new_tokens=2 + 1 + 16 + 1)
    assert (whole.token_ids, len(whole.images)) == ([160, 170, 298, 299], 1)
    assert (whole.finish_reason, whole.steps) == ("length", 20)
