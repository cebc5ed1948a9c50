"""The cached, batched engine beside a loop that reruns the whole prefix at every step."""

from itertools import chain, repeat

import pytest
import torch
import torch.nn.functional as F

from metamorph.errors import UserError
from metamorph.generation import ImageSegment, Prompt, Sampling, TextSegment, generate
from metamorph_kernels import key_intervals
from tests.generation.tiny import (
    END,
    EOS,
    START,
    TOKENS,
    WIDTH,
    check_same,
    image_prompt,
    mixed_prompts,
    naive,
    order_of,
    tiny_model,
)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_new_tokens", [1, 5, 30])
def test_batched_and_cached_equals_alone_and_uncached(seed, max_new_tokens):
    model, prompts = tiny_model(seed), mixed_prompts()
    generations = generate(model, prompts, max_new_tokens=max_new_tokens)
    for generation, prompt in zip(generations, prompts, strict=True):
        check_same(generation, naive(model, prompt, max_new_tokens))


def test_the_seeds_above_reach_every_kind_of_row():
    generations = [
        generation
        for seed in range(8)
        for generation in generate(tiny_model(seed), mixed_prompts(), max_new_tokens=30)
    ]
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    assert {len(generation.images) for generation in generations} >= {0, 1, 2, 3}


def scripted(*token_ids: int):
    """A model whose text head favours these tokens, one a step, within images too; then EOS."""
    model, wishes = tiny_model(0), chain(token_ids, repeat(EOS))
    model.language.head = lambda states: F.one_hot(
        torch.full((len(states),), next(wishes)), 12
    ).float()
    return model


IGNORED = [EOS] * (TOKENS + 1)  # what the text head wishes within an image, and at its end


def test_text_logits_are_ignored_inside_an_image_and_its_end_is_forced():
    model = scripted(START, *IGNORED, EOS)
    (generation,) = generate(model, [Prompt([1, 2])], max_new_tokens=50)
    assert order_of(generation) == [START, "image", END, EOS]
    assert generation.images[0].shape == (TOKENS, WIDTH)


def test_an_unopened_image_end_is_ordinary_text():
    model = scripted(3, END, START, *IGNORED, START, *IGNORED, EOS)
    (generation,) = generate(model, [Prompt([1])], max_new_tokens=50)
    assert order_of(generation) == [3, END, START, "image", END, START, "image", END, EOS]
    assert [type(segment) for segment in generation.segments] == [
        TextSegment,
        ImageSegment,
        TextSegment,
        ImageSegment,
        TextSegment,
    ]


def test_every_vector_is_a_unit_vector_and_is_fed_back_normalised():
    model = tiny_model(1)
    fed = []
    model.projector.register_forward_hook(lambda m, i, o: fed.append(i[0]))
    (generation,) = generate(model, [Prompt([1, START])], max_new_tokens=TOKENS + 1)
    (image,) = generation.images
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(TOKENS))
    assert torch.equal(torch.cat(fed)[:TOKENS], image)  # what it fed while closing is not used


def test_a_prompt_image_may_be_bidirectional():
    model = tiny_model(2)
    plain = image_prompt([1, 2], 1, [3])
    span = (plain.visual_positions[0], plain.visual_positions[-1] + 1)
    spanned = Prompt(plain.token_ids, plain.visual_positions, plain.features, [span])
    batch = [Prompt([1, 2, 3]), spanned]
    fed = []
    model.language.head = lambda states: (
        fed.append(states.clone()) or F.one_hot(torch.full((len(states),), EOS), 12)
    )
    generate(model, batch, max_new_tokens=1)
    intervals = key_intervals([len(plain.token_ids)], [span])
    with torch.no_grad():
        states = model(
            torch.tensor(plain.token_ids),
            torch.arange(len(plain.token_ids)),
            intervals,
            plain.features,
            torch.tensor(plain.visual_positions),
        )
    torch.testing.assert_close(fed[0][1], states[-1], atol=1e-5, rtol=1e-5)


def sampled(prompts: list[Prompt], *seeds: int) -> list[list[int]]:
    samplings = [Sampling(temperature=3.0, top_k=8, seed=seed) for seed in seeds]
    given = samplings if len(samplings) > 1 else samplings[0]
    batch = generate(tiny_model(0), prompts, max_new_tokens=12, sampling=given)
    return [generation.token_ids for generation in batch]


def test_sampling_is_reproducible_and_varied():
    prompts = mixed_prompts()
    assert sampled(prompts, 0) == sampled(prompts, 0)
    assert sampled(prompts, 0) != sampled(prompts, 1)
    one, same, other = sampled([Prompt([1, 2])] * 3, 5, 5, 6)
    assert one == same != other


def test_a_seed_belongs_to_its_request():
    prompts, seeds = mixed_prompts(), list(range(6))
    together = sampled(prompts, *seeds)
    assert sampled(prompts[::-1], *seeds[::-1]) == together[::-1]
    assert [sampled([prompt], seed)[0] for prompt, seed in zip(prompts, seeds, strict=True)] == (
        together
    )


def test_samplings_must_be_as_many_as_prompts():
    with pytest.raises(ValueError, match="sampling: expected one for each of 6 prompts, got 2"):
        generate(tiny_model(0), mixed_prompts(), max_new_tokens=5, sampling=[Sampling()] * 2)


def test_damaged_weights_are_no_answer():
    model = tiny_model(0)
    model.vision_head.linear_2.bias.data[0] = torch.nan
    with pytest.raises(UserError, match="features of a picture are NaN"):
        generate(model, [Prompt([1, START])], max_new_tokens=TOKENS + 1)
    model.language.model.norm.weight.data[0] = torch.nan
    with pytest.raises(UserError, match="logits of the next token are NaN"):
        generate(model, [Prompt([1])], max_new_tokens=1)


def test_bf16_and_autocast_run():
    prompts = mixed_prompts()
    half = tiny_model(0).to(torch.bfloat16)
    for generation in generate(half, prompts, max_new_tokens=12):
        assert all(image.dtype == torch.float32 for image in generation.images)
    with torch.autocast("cpu", torch.bfloat16):
        generate(tiny_model(0), prompts, max_new_tokens=12)


def test_no_prompts_give_no_generations():
    assert generate(tiny_model(0), [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("prompt", "budget", "message"),
    [
        (Prompt([1]), 0, "max_new_tokens: expected at least 1, got 0"),
        (Prompt([]), 3, r"prompts\[1\].token_ids: expected at least one"),
        (Prompt([1, 2], [1]), 3, r"prompts\[1\].visual_positions: expected 0, .*got 1"),
        (
            Prompt([1] * 9, [1, 2, 3, 9], torch.zeros(1, 4, 6)),
            3,
            "visual_positions: 9 is outside its 9 tokens",
        ),
        (
            Prompt([1] * 9, [1, 2, 3, 4], torch.zeros(1, 4, 7)),
            3,
            r"features: expected \[images, 4, 6\], got \[1, 4, 7\]",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(prompt, budget, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(0), [Prompt([1]), prompt], max_new_tokens=budget)
