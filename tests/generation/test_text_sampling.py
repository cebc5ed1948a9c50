"""Choosing text tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.errors import UserError
from metamorph.generation import GREEDY, Sampling
from metamorph.generation.sampling import sample, sample_requests

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])


def frequencies(draws: int = 20_000, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(generator=generator, **options)
    ids = sample(PROBABILITIES.log().expand(draws, -1), sampling)
    assert ids.dtype == torch.int64
    return ids.bincount(minlength=5) / draws


def test_greedy_takes_the_best():
    logits = torch.randn(7, 11)
    assert torch.equal(sample(logits, GREEDY), logits.argmax(-1))
    assert torch.equal(sample(logits, Sampling(top_k=3, top_p=0.5)), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-38, 5e-324])
@pytest.mark.parametrize("best", [30.0, 3e38, -3e38])
def test_a_tiny_temperature_takes_the_best(temperature, best):
    logits = torch.tensor([[best - abs(best), best - abs(best) / 10, best, -torch.inf]])
    draw = Sampling(temperature, generator=torch.Generator().manual_seed(0))
    assert {sample(logits, draw).item() for _ in range(20)} == {2}
    assert sample(logits.bfloat16(), draw).item() == 2


@pytest.mark.parametrize("row", [[1.0, torch.nan, 5.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_no_choice(row, temperature):
    sampling = Sampling(temperature, generator=torch.Generator())
    logits = torch.tensor([[1.0, 2.0, 3.0], row])
    with pytest.raises(UserError, match="logits of the next token are NaN or infinite"):
        sample(logits, sampling)
    with pytest.raises(UserError, match="NaN or infinite"):
        sample_requests(logits, [sampling] * 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 99))
def test_a_request_draws_the_same_in_any_company(kinds, seed):
    """Row i of a batch, beside the same row alone: the same logits, settings and seed."""
    logits = torch.randn(len(kinds), 50, generator=torch.Generator().manual_seed(seed))

    def samplings() -> list[Sampling]:
        options = [{"temperature": 1.0}, {"temperature": 2.0, "top_k": 9}, {"top_p": 0.5}, {}]
        return [
            Sampling(**options[kind], generator=torch.Generator().manual_seed(row))
            for row, kind in enumerate(kinds)
        ]

    together = sample_requests(logits, samplings())
    alone = [sample(logits[row : row + 1], one) for row, one in enumerate(samplings())]
    assert together == torch.cat(alone).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_sharpens_or_flattens(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    expected = expected / expected.sum()
    torch.testing.assert_close(frequencies(temperature=temperature), expected, atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 2]),
        ({"top_p": 0.8}, [1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 2, "top_p": 0.7}, [1, 2]),  # the cut to two comes first: 0.4 is then 0.62
        ({"top_k": 2, "top_p": 0.6}, [1]),
    ],
)
def test_cuts_keep_the_best_and_their_proportions(options, kept):
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    measured = frequencies(temperature=1.0, **options)
    torch.testing.assert_close(measured, expected, atol=0.015, rtol=0)
    assert (measured[expected == 0] == 0).all()


def test_rows_are_drawn_independently():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]]).repeat(500, 1)
    ids = sample(logits, Sampling(temperature=1.0, generator=generator)).view(500, 2)
    assert set(ids[:, 0].tolist()) == {0, 2} and set(ids[:, 1].tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected 0 or more, got -1.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1.0}, "generator: a temperature above 0 needs"),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"top_p": 0.0}, "top_p: expected more than 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)
