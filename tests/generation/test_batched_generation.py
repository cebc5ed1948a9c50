"""The cached, batched engine beside a loop that reruns the whole prefix at every step."""

import pytest
import torch
import torch.nn.functional as F

from metamorph.errors import UserError
from metamorph.generation import ImageSegment, Prompt, Sampling, TextSegment, generate
from metamorph.model import LanguageConfig, MetaMorph, MetaMorphConfig
from metamorph_kernels import interval_attention, key_intervals

START, END, EOS, PAD = 8, 9, 10, 11
TOKENS, WIDTH = 4, 6


def tiny_model(seed: int) -> MetaMorph:
    torch.manual_seed(seed)
    language = LanguageConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=12,
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
    return Prompt(token_ids + after, positions, features)


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


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_new_tokens", [1, 5, 30])
def test_batched_and_cached_equals_alone_and_uncached(seed, max_new_tokens):
    model, prompts = tiny_model(seed), mixed_prompts()
    generations = generate(model, prompts, max_new_tokens=max_new_tokens)
    for generation, prompt in zip(generations, prompts, strict=True):
        expected = naive(model, prompt, max_new_tokens)
        assert order_of(generation) == expected["order"]
        for field in ("finish_reason", "steps", "token_forwards"):
            assert getattr(generation, field) == expected[field], field
        assert len(generation.images) == len(expected["images"])
        for image, other in zip(generation.images, expected["images"], strict=True):
            # Of unit vectors, when each of 30 steps adds the rounding of sums of 40 terms: 7e-5.
            torch.testing.assert_close(image, other, atol=1e-4, rtol=0)


def test_the_seeds_above_reach_every_kind_of_row():
    generations = [
        generation
        for seed in range(8)
        for generation in generate(tiny_model(seed), mixed_prompts(), max_new_tokens=30)
    ]
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    assert {len(generation.images) for generation in generations} >= {0, 1, 2, 3}


class Script:
    """Stands in for the text head: favours a token by call, and counts the rows it is given."""

    def __init__(self, *token_ids: int):
        self.token_ids = list(token_ids)
        self.rows = []

    def __call__(self, states):
        self.rows.append(len(states))
        token_id = self.token_ids.pop(0) if len(self.token_ids) > 1 else self.token_ids[0]
        return F.one_hot(torch.full((len(states),), token_id), 12).float()


def test_text_logits_are_ignored_inside_an_image_and_its_end_is_forced():
    """From the second text step on the head asks for EOS: no image may be cut short by it."""
    model = tiny_model(0)
    model.language.head = Script(START, EOS)
    (generation,) = generate(model, [Prompt([1, 2])], max_new_tokens=50)
    assert order_of(generation) == [START, "image", END, EOS]
    assert generation.images[0].shape == (TOKENS, WIDTH)
    assert model.language.head.rows == [1, 1]  # image steps and the forced end ask for no logits


def test_an_unopened_image_end_is_ordinary_text():
    model = tiny_model(0)
    model.language.head = Script(3, END, START, START, EOS)
    (generation,) = generate(model, [Prompt([1])], max_new_tokens=50)
    assert order_of(generation) == [3, END, START, "image", END, START, "image", END, EOS]
    assert [type(segment) for segment in generation.segments] == [
        TextSegment,
        ImageSegment,
        TextSegment,
        ImageSegment,
        TextSegment,
    ]


def test_each_head_runs_for_its_own_rows_only():
    model = tiny_model(0)
    model.language.head = Script(3)
    visual_rows = []
    model.vision_head.register_forward_hook(lambda m, i, o: visual_rows.append(len(i[0])))
    prompts = [Prompt([1]), Prompt([1, START]), Prompt([5, 2])]
    generate(model, prompts, max_new_tokens=TOKENS + 3)
    assert visual_rows == [1] * TOKENS
    assert model.language.head.rows == [2] * (TOKENS + 1) + [3, 3]


def test_every_vector_is_a_unit_vector_and_is_fed_back_normalised():
    model = tiny_model(1)
    fed = []
    model.projector.register_forward_hook(lambda m, i, o: fed.append(i[0]))
    (generation,) = generate(model, [Prompt([1, START])], max_new_tokens=TOKENS + 1)
    (image,) = generation.images
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(TOKENS))
    assert torch.equal(torch.cat(fed), image)


def test_steps_are_reported_as_they_happen():
    reported = []
    prompts = mixed_prompts()
    generations = generate(tiny_model(3), prompts, max_new_tokens=30, on_step=reported.append)
    for row, generation in enumerate(generations):
        mine = [step for steps in reported for step in steps if step.sequence == row]
        assert len(mine) == generation.steps
        token_ids = [step.token_id for step in mine if step.token_id is not None]
        assert token_ids == generation.token_ids
        indices = [step.visual_index for step in mine if step.token_id is None]
        assert indices == list(range(TOKENS)) * len(generation.images)
    assert len(reported) == max(generation.steps for generation in generations)


def test_a_prompt_image_may_be_bidirectional():
    model = tiny_model(2)
    plain = image_prompt([1, 2], 1, [3])
    span = (plain.visual_positions[0], plain.visual_positions[-1] + 1)
    spanned = Prompt(plain.token_ids, plain.visual_positions, plain.features, [span])
    batch = [Prompt([1, 2, 3]), spanned]
    fed = []
    model.language.head = lambda states: (
        fed.append(states) or F.one_hot(torch.full((len(states),), EOS), 12)
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
    samplings = [
        Sampling(temperature=3.0, top_k=8, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
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


def test_a_generator_is_left_as_it_was():
    sampling = Sampling(temperature=1.0, generator=torch.Generator().manual_seed(0))
    before = sampling.generator.get_state()
    generate(tiny_model(0), mixed_prompts(), max_new_tokens=5, sampling=sampling)
    assert torch.equal(sampling.generator.get_state(), before)


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
