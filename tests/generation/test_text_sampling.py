"""Choosing text tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.errors import UserError
from metamorph.generation import GREEDY, Sampling
from metamorph.generation.sampling import SamplingTable, exponential_times

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
NOTHING = torch.zeros(0, dtype=torch.int64)


def choose(logits: torch.Tensor, *samplings: Sampling, emitted=0, seen=NOTHING) -> torch.Tensor:
    """Token ids [N] of logits [N, V], by one sampling for all rows or one for each."""
    rows, vocabulary = logits.shape
    table = SamplingTable(len(samplings), vocabulary, torch.device("cpu"))
    for row, sampling in enumerate(samplings):
        table.set(row, sampling, seen)
    if len(samplings) < rows:
        for name, value in vars(table).items():
            setattr(table, name, value.expand(rows, *value.shape[1:]))
    drawn = torch.as_tensor(emitted).expand(rows)
    token_ids, _ = table.choose(logits.float(), drawn)
    assert token_ids.dtype == torch.int64
    return token_ids


def frequencies(draws: int = 20_000, **options) -> torch.Tensor:
    logits = PROBABILITIES.log().expand(draws, -1)
    ids = choose(logits, Sampling(seed=3, **options), emitted=torch.arange(draws))
    return ids.bincount(minlength=5) / draws


def test_greedy_takes_the_best():
    logits = torch.randn(7, 11)
    assert torch.equal(choose(logits, GREEDY), logits.argmax(-1))
    assert torch.equal(choose(logits, Sampling(top_k=3, top_p=0.5)), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-38, 5e-324])
@pytest.mark.parametrize("best", [30.0, 3e38, -3e38])
def test_a_tiny_temperature_takes_the_best(temperature, best):
    logits = torch.tensor([[best - abs(best), best - abs(best) / 10, best, -torch.inf]])
    drawn = choose(logits.expand(20, -1), Sampling(temperature), emitted=torch.arange(20))
    assert set(drawn.tolist()) == {2}


@pytest.mark.parametrize("row", [[1.0, torch.nan, 5.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_known_by_the_best(row, temperature):
    table = SamplingTable(2, 3, torch.device("cpu"))
    for number in range(2):
        table.set(number, Sampling(temperature), NOTHING)
    _, best = table.choose(torch.tensor([[1.0, 2.0, 3.0], row]), torch.zeros(2).long())
    assert best.isfinite().tolist() == [True, False]


KINDS = [
    {"temperature": 1.0}, {"temperature": 2.0, "top_k": 9}, {"top_p": 0.5}, {},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.05, "repetition_penalty": 1.3},
]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 99))
def test_a_request_draws_the_same_in_any_company(kinds, seed):
    """Row i of a batch, beside the same row alone: the same logits, settings and seed."""
    logits = torch.randn(len(kinds), 50, generator=torch.Generator().manual_seed(seed))
    samplings = [Sampling(**KINDS[kind], seed=row) for row, kind in enumerate(kinds)]
    seen = torch.tensor([1, 7])
    together = choose(logits, *samplings, emitted=seed, seen=seen)
    alone = [
        choose(logits[row : row + 1], one, emitted=seed, seen=seen)
        for row, one in enumerate(samplings)
    ]
    assert together.tolist() == torch.cat(alone).tolist()


def test_a_row_that_cuts_nothing_draws_the_same_beside_one_that_does():
    """Alone nothing is sorted; beside a cut everything is."""
    logits, emitted = 3 * torch.randn(300, 64), torch.arange(300)
    alone = choose(logits, Sampling(temperature=1.0, seed=5), emitted=emitted)
    rows = logits.repeat_interleave(2, dim=0)
    both = [Sampling(temperature=1.0, seed=5), Sampling(temperature=1.0, top_k=3)] * 300
    beside = choose(rows, *both, emitted=emitted.repeat_interleave(2))
    assert torch.equal(beside[::2], alone)


def test_a_top_p_of_one_cuts_nothing_beside_one_that_does(monkeypatch):
    """The likelier token has all of 1, as float32 rounds it, and still the other may come first."""
    name, times = "metamorph.generation.sampling.exponential_times", torch.tensor([1e30, 1e-30])
    monkeypatch.setattr(name, lambda seed, *_: times.expand(len(seed), -1))
    logits = torch.tensor([[0.0, -30.0]]).expand(2, -1)
    both = Sampling(temperature=1.0, top_p=1.0), Sampling(temperature=1.0, top_p=0.5)
    assert choose(logits, *both).tolist() == [1, 0]
    assert choose(logits[:1], both[0]).tolist() == [1]


def test_draws_differ_by_seed_and_by_place_in_the_answer():
    logits = torch.zeros(64, 50)
    draws = {
        tuple(choose(logits, Sampling(1.0, seed=seed), emitted=torch.arange(64) + start).tolist())
        for seed in (0, 1, 2**32 - 1)
        for start in (0, 64, 1000)
    }
    assert len(draws) == 9 and all(len(set(draw)) > 25 for draw in draws)


def test_times_of_arrival_are_exponential():
    """Against the quantiles of the distribution, over seeds, places and tokens."""
    place = torch.arange(200)
    times = exponential_times(torch.full((200,), 9), place, 500)
    assert times.shape == (200, 500) and times.dtype == torch.float32 and (times > 0).all()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        quantile = -torch.log1p(torch.tensor(-share))
        torch.testing.assert_close((times < quantile).float().mean().item(), share, atol=0.004,
                                   rtol=0)  # fmt: skip
    assert times.flatten().unique().numel() > 99_000
    for table in (times, times.T):  # neither rows nor columns know of each other
        rows, length = table.shape
        between = torch.corrcoef(table)[~torch.eye(rows, dtype=torch.bool)] * length**0.5
        assert 0.97 < between.std() < 1.03 and between.abs().max() < 9


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
        ({"min_p": 0.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.49}, [1, 2, 3]),  # of the best one's 0.4
        ({"min_p": 0.51}, [1, 2]),
        ({"min_p": 1.0}, [1]),
        ({"min_p": 0.2, "top_k": 3, "top_p": 0.7}, [1, 2]),
    ],
)
def test_cuts_keep_the_best_and_their_proportions(options, kept):
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    measured = frequencies(temperature=1.0, **options)
    torch.testing.assert_close(measured, expected, atol=0.015, rtol=0)
    assert (measured[expected == 0] == 0).all()


def test_rows_are_drawn_independently():
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]]).repeat(500, 1)
    ids = choose(logits, Sampling(temperature=1.0), emitted=torch.arange(1000)).view(500, 2)
    assert set(ids[:, 0].tolist()) == {0, 2} and set(ids[:, 1].tolist()) == {1}


def test_a_repetition_penalty_makes_what_was_said_less_likely():
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.2]])
    for penalty, seen, expected in (
        (1.0, [0], 0), (1.5, [0], 1), (1.5, [0, 1], 0), (3.0, [0, 1], 0), (0.5, [1], 1),
    ):  # fmt: skip
        chosen = choose(logits, Sampling(repetition_penalty=penalty), seen=torch.tensor(seen))
        assert chosen.tolist() == [expected]
    below = torch.tensor([[-1.0, -1.2]])
    assert choose(below, Sampling(repetition_penalty=1.5), seen=torch.tensor([0])).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a number, at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 0}, "top_k: expected a whole number, at least 1, got 0"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p: expected more than 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p: expected a number, from 0 to 1, got 1.1"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number, from 0.01 to 100"),
        ({"repetition_penalty": 101}, "repetition_penalty"),
        ({"seed": -1}, "seed: expected a whole number, from 0 to"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)
