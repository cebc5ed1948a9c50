"""Ranks beside ones that were counted by hand."""

import pytest
import torch

from metamorph.evaluation.retrieval import (
    CANDIDATES,
    chance,
    cosine_similarities,
    distinct_tasks,
    ranks,
)


def test_a_rank_is_a_place_behind_all_that_are_as_near():
    similarities = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.8], [0.5, 0.5, 0.5]])
    assert ranks(similarities, [0, 1, 2]) == [1, 2, 3]
    assert ranks(similarities, [2, 0, 0]) == [3, 3, 3]


def test_similarity_is_the_mean_cosine_over_tokens():
    features = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # one picture of two tokens
    candidates = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert cosine_similarities(features, candidates).tolist() == [[1.0, 0.5]]


def test_chance_is_the_mean_over_all_ranks():
    assert chance(1) == {"top-1": 1.0, "reciprocal rank": 1.0}
    assert chance(4)["reciprocal rank"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_candidates_all_differ_in_what_they_show():
    captions = [task.sample.turns[0].text for task in distinct_tasks(CANDIDATES)]
    assert len({*captions}) == CANDIDATES
