"""Masks of transformers as intervals, against brute force."""

import inspect

import pytest
import torch

from metamorph_kernels import register_with_transformers, transformers_attention
from metamorph_kernels.transformers_attention import NAME, batch_mask
from tests.kernels.comparisons import Record

transformers = pytest.importorskip("transformers")
from transformers.masking_utils import (  # noqa: E402
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    or_masks,
    sliding_window_causal_mask_function,
)

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 50}

PARAMETERS = inspect.signature(create_causal_mask).parameters  # each release has its own


def causal_mask(config, states, real=None, **rules):
    """As a model asks for it; older releases are told the places of the queries, too."""
    if "cache_position" in PARAMETERS:
        rules["cache_position"] = torch.arange(states.shape[1])
    return create_causal_mask(config, states, attention_mask=real, past_key_values=None, **rules)


@pytest.fixture(autouse=True)
def registered():
    assert register_with_transformers() == NAME


def dense(rule, batch, length, real=None):
    """bool [B, T, T], one element at a time; padding queries and empty ones see themselves."""
    mask = torch.zeros(batch, length, length, dtype=torch.bool)
    for row in range(batch):
        for query in range(length):
            for key in range(length):
                seen = rule(*(torch.tensor(index) for index in (row, 0, query, key)))
                mask[row, query, key] = bool(seen) and (real is None or bool(real[row, key]))
            if (real is not None and not real[row, query]) or not mask[row, query].any():
                mask[row, query] = torch.arange(length) == query
    return mask


def prefix(batch_idx, head_idx, q_idx, kv_idx):
    return kv_idx < 5


def within_two(batch_idx, head_idx, q_idx, kv_idx):
    return abs(q_idx - kv_idx) <= 2


def strictly_before(batch_idx, head_idx, q_idx, kv_idx):
    return kv_idx < q_idx


RULES = {
    "causal": causal_mask_function,
    "full": bidirectional_mask_function,
    "window": sliding_window_causal_mask_function(3),
    "window both ways": within_two,
    "chunks": chunked_causal_mask_function(4, torch.tensor([0, 0])),
    "prefix": or_masks(causal_mask_function, prefix),
    "strict window": and_masks(strictly_before, sliding_window_causal_mask_function(3)),
}


@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("elements", [1, 100, 2**24])
def test_rules_against_brute_force(monkeypatch, rule, padding, elements):
    monkeypatch.setattr(transformers_attention, "ELEMENTS_AT_ONCE", elements)
    real = None
    if padding == "right":
        real = torch.arange(10) < torch.tensor([[10], [6]])
    if padding == "left":
        real = torch.arange(10) >= torch.tensor([[0], [3]])
    expected = torch.block_diag(*dense(RULES[rule], 2, 10, real)).bool()
    for vmap in (False, True):
        mask = batch_mask(2, 10, 10, mask_function=RULES[rule], attention_mask=real, use_vmap=vmap)
        token = torch.arange(20)
        start, end = mask.intervals.row_start[:, None], mask.intervals.row_end[:, None]
        assert torch.equal((start <= token) & (token < end), expected)


def test_a_rule_of_single_indices_through_vmap():
    table = torch.tensor([0, 0, 1, 1, 1])

    def same(batch_idx, head_idx, q_idx, kv_idx):
        return table[q_idx] == table[kv_idx]

    config = transformers.LlamaConfig(**SIZES, attn_implementation=NAME)
    mask = causal_mask(config, torch.zeros(2, 5, 32), and_mask_function=same).intervals
    assert mask.document_lengths == (2, 3, 2, 3) and mask.causal
    whole = create_bidirectional_mask(config, torch.zeros(2, 5, 32), None).intervals
    assert whole.row_end.tolist() == [5] * 5 + [10] * 5


def test_right_padding_stays_plainly_causal():
    real = torch.arange(8) < torch.tensor([[8], [5]])
    mask = batch_mask(2, 8, 8, mask_function=causal_mask_function, attention_mask=real)
    assert mask.intervals.causal and all(mask.intervals.plain_documents)
    assert mask.intervals.document_lengths == (8, 5, 1, 1, 1)


def test_memory_grows_with_the_chunk_not_the_square(monkeypatch):
    monkeypatch.setattr(transformers_attention, "ELEMENTS_AT_ONCE", 2**14)
    with Record() as record:
        batch_mask(1, 2048, 2048, mask_function=sliding_window_causal_mask_function(7))
    assert record.elements <= 2**14
    with Record() as record:  # nothing to evaluate
        batch_mask(1, 2048, 2048, mask_function=causal_mask_function)
    assert record.elements <= 2048


def test_positions_of_transformers_5_0():
    mask = batch_mask(
        batch_size=1,
        cache_position=torch.arange(6),
        kv_length=6,
        mask_function=sliding_window_causal_mask_function(2),
    )
    assert mask.intervals.row_start.tolist() == [0, 0, 1, 2, 3, 4]


def test_to_moves_the_mask():
    mask = batch_mask(1, 4, 4, mask_function=causal_mask_function).to("meta")
    assert mask.intervals.col_end.device.type == "meta" and mask.shape == (1, 1, 4, 4)


@pytest.mark.skipif("block_sequence_ids" not in PARAMETERS, reason="a newer transformers has it")
def test_pictures_by_block_ids():
    config = transformers.LlamaConfig(**SIZES, attn_implementation=NAME)
    block = torch.full((1, 9), -1)
    block[0, 2:5], block[0, 6:8] = 0, 1
    mask = causal_mask(config, torch.zeros(1, 9, 32), block_sequence_ids=block)
    assert mask.shape == (1, 1, 9, 9)
    assert mask.intervals.row_end.tolist() == [1, 2, 5, 5, 5, 6, 8, 8, 9]
    assert mask.intervals.document_lengths == (9,)


def hole(batch_idx, head_idx, q_idx, kv_idx):
    return (batch_idx == 0) | (kv_idx != 1)


def falling(batch_idx, head_idx, q_idx, kv_idx):
    return (kv_idx < 4) & (q_idx != 3) | (kv_idx < 2)


def test_masks_that_are_no_intervals():
    def mask(rule):
        return batch_mask(2, 5, 5, mask_function=rule)

    with pytest.raises(
        ValueError, match=rf"{NAME}: query 2 of batch row 1 sees 2 keys of \[0, 3\)"
    ):
        mask(and_masks(causal_mask_function, hole))
    with pytest.raises(
        ValueError, match=r"query 3 of batch row 0 sees keys \[0, 2\) after \[0, 4\)"
    ):
        mask(falling)
    config = transformers.LlamaConfig(**SIZES, attn_implementation=NAME)
    with pytest.raises(ValueError, match="query 0 of batch row 0 sees 2 keys"):
        causal_mask(
            config,
            torch.zeros(1, 6, 32),
            or_mask_function=lambda batch, head, query, key: key == 4,
        )
    with pytest.raises(ValueError, match="query 2 of batch row 0 sees 2 keys"):
        real = torch.tensor([[1, 0, 1, 1]])
        causal_mask(config, torch.zeros(1, 4, 32), real)
