"""Interval attention for the models of Hugging Face transformers, under a name of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from metamorph_kernels.attention.interval import interval_attention
from metamorph_kernels.intervals import Intervals, intervals_from_rows, key_intervals

NAME = "metamorph_interval"
ELEMENTS_AT_ONCE = 2**24  # of a mask while it is read; bounds memory
# What other attention functions of transformers take and this one would have to ignore.
UNKNOWN = ("softcap", "s_aux", "position_bias", "indices", "cache", "output_attentions")


@dataclass(frozen=True, eq=False)
class BatchMask:
    """The mask of a batch [B, T] as Intervals of one row of B * T tokens.

    `shape` [B, 1, T, T] and `ndim` are those of the mask it stands for: transformers asks for them
    where one model hands a mask that is ready to another.
    """

    intervals: Intervals
    shape: tuple[int, int, int, int]
    ndim: ClassVar[int] = 4

    def to(self, device: torch.device | str) -> "BatchMask":
        """The same mask on `device`; accelerate calls this between the devices of a model."""
        return replace(self, intervals=self.intervals.to(device))


def register_with_transformers() -> str:
    """Make `attn_implementation="metamorph_interval"` known to transformers; returns that name.

    Then `from_pretrained(..., attn_implementation=name)` or `model.set_attn_implementation(name)`
    runs a model's attention through `interval_attention`, forward and backward. The mask is read
    from the model's own rule once per forward; the batch becomes one packed row. Calling this
    twice does no harm. What cannot be expressed raises ValueError in the forward pass.

    Raises ImportError without transformers 5.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            f"register_with_transformers needs transformers 5 or newer: {error}"
        ) from error
    AttentionMaskInterface.register(NAME, batch_mask)
    AttentionInterface.register(NAME, batch_attention)
    return NAME


def batch_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BatchMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: object,
) -> tuple[Tensor, None]:
    """The attention function: query [B, Hq, T, D], key and value [B, Hkv, T, D] -> [B, T, Hq, D].

    `attention_mask` is what `batch_mask` made. Vision towers give None for no mask; then
    `is_causal`, or the module's own, says whether all see all.

    Raises ValueError for dropout, for cached decoding, and for anything else it cannot do.
    """
    if dropout > 0:
        raise ValueError(f"dropout: {NAME} has none, got {dropout}; set attention_dropout to 0")
    for name in UNKNOWN:
        if more.get(name) is not None and more[name] is not False:
            raise ValueError(f"{name}: {NAME} does not support it; use another attn_implementation")
    batch, _, tokens, _ = query.shape
    _check_no_cache(tokens, key.shape[2])
    if attention_mask is None:
        causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
        if causal is None:
            raise ValueError(f"attention_mask: {NAME} got None and nothing says what it means")
        attention_mask = _whole_rows(batch, tokens, bool(causal), query.device)
    if not isinstance(attention_mask, BatchMask):
        raise ValueError(
            f"attention_mask: {NAME} takes padding masks [B, T], got a prepared "
            f"{type(attention_mask).__name__} {list(getattr(attention_mask, 'shape', []))}"
        )
    if attention_mask.shape[::2] != (batch, tokens):
        raise ValueError(
            f"attention_mask: {NAME} expected the mask of [B, T] = [{batch}, {tokens}], "
            f"got that of {list(attention_mask.shape[::2])}"
        )
    query, key, value = (
        tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)
    )  # [B * T, heads, D]
    out = interval_attention(query, key, value, attention_mask.intervals, scale=scaling)
    return out.unflatten(0, (batch, tokens)), None


@torch.compiler.disable
def batch_mask(
    batch_size: int,
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | BatchMask | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    cache_position: Tensor | None = None,
    **_: object,
) -> BatchMask:
    """The mask function: what the queries of a batch [B, T] see, as one interval each.

    `mask_function` is the model's rule, causal unless given; `attention_mask` bool [B, T] says
    which keys are padding. The rule is evaluated for a few queries at a time, never T x T at once.
    Padding queries, and those that see nothing, are given themselves alone: nobody reads what they
    return.

    Raises ValueError for cached decoding, and, naming batch row and query, for a mask that is not
    one run of keys for each query with bounds that never decrease.
    """
    from transformers.masking_utils import causal_mask_function

    if isinstance(attention_mask, BatchMask):  # another model made it, PaliGemma for its Gemma
        return attention_mask
    rule = mask_function or causal_mask_function
    if cache_position is not None:  # transformers 5.0 says with it where the queries are
        q_length, q_offset, device = len(cache_position), cache_position[0], cache_position.device
    _check_no_cache(q_length, kv_length)
    if int(q_offset) != 0 or kv_offset != 0:
        raise ValueError(f"{NAME} has no cached decoding: the queries start at {int(q_offset)}")
    real = None
    if attention_mask is not None:
        if attention_mask.shape != (batch_size, kv_length):
            raise ValueError(
                f"attention_mask: {NAME} expected [{batch_size}, {kv_length}], "
                f"got {list(attention_mask.shape)}"
            )
        real = attention_mask.to(device, torch.bool)
        if real.all():
            real = None
    if rule is causal_mask_function and real is None:
        return _whole_rows(batch_size, kv_length, True, device)

    chunk = max(1, ELEMENTS_AT_ONCE // (batch_size * kv_length))
    token = torch.arange(kv_length, device=device)
    evaluate = _evaluate_vmap if use_vmap else _evaluate
    parts = []
    for queries in token.split(chunk):
        visible = evaluate(rule, batch_size, queries, token)
        if real is not None:
            visible = visible & real[:, None]
        parts.append(_bounds(visible, queries, real))
    start, end, seen = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    _check_expressible(start, end, seen)
    offset = kv_length * torch.arange(batch_size, device=device)[:, None]
    intervals = intervals_from_rows((start + offset).flatten(), (end + offset).flatten())
    return BatchMask(intervals, (batch_size, 1, kv_length, kv_length))


def _check_no_cache(queries: int | None, keys: int) -> None:
    if queries != keys:
        raise ValueError(
            f"{NAME} has no cached decoding and no cross-attention: got {queries} queries and "
            f"{keys} keys; use another attn_implementation, or use_cache=False"
        )


@torch.compiler.disable
def _whole_rows(batch: int, tokens: int, causal: bool, device: torch.device | str) -> BatchMask:
    """Nothing is padding: causal rows, or rows that see themselves whole."""
    spans = [] if causal else [(row * tokens, (row + 1) * tokens) for row in range(batch)]
    return BatchMask(key_intervals([tokens] * batch, spans, device), (batch, 1, tokens, tokens))


def _evaluate(rule: Callable, batch: int, queries: Tensor, keys: Tensor) -> Tensor:
    """bool [B, queries, T] from a rule that takes index tensors which broadcast."""
    row = torch.arange(batch, device=keys.device)[:, None, None, None]
    head = torch.zeros_like(row[:1])
    visible = rule(row, head, queries[None, None, :, None], keys[None, None, None, :])
    return visible.expand(batch, 1, len(queries), len(keys))[:, 0]


def _evaluate_vmap(rule: Callable, batch: int, queries: Tensor, keys: Tensor) -> Tensor:
    """The same from a rule, given by a user, that may take single indices only."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    row = torch.arange(batch, device=keys.device)
    for axis in (3, 2, 0):
        rule = torch.vmap(rule, in_dims=tuple(0 if i == axis else None for i in range(4)))
    with TransformGetItemToIndex():  # as transformers does: a rule may index tensors of its own
        return rule(row, row.new_zeros(()), queries, keys)


def _bounds(visible: Tensor, queries: Tensor, real: Tensor | None) -> tuple[Tensor, ...]:
    """First key, end (exclusive) and number of the keys that each query sees, [B, queries]."""
    seen = visible.sum(-1)
    visible = visible.to(torch.uint8)
    start = visible.argmax(-1)  # the first of them
    end = visible.shape[-1] - visible.flip(-1).argmax(-1)
    alone = seen == 0
    if real is not None:
        alone |= ~real[:, queries]
    return (
        torch.where(alone, queries, start),
        torch.where(alone, queries + 1, end),
        seen.masked_fill(alone, 1),
    )


def _check_expressible(start: Tensor, end: Tensor, seen: Tensor) -> None:
    """Raise ValueError unless each query [B, T] sees one run and the bounds never decrease."""
    holes = end - start != seen
    falls = torch.zeros_like(holes)
    falls[:, 1:] = (start.diff() < 0) | (end.diff() < 0)
    bad = (holes | falls).nonzero()
    if len(bad) == 0:
        return
    row, query = bad[0].tolist()
    name = f"{NAME}: query {query} of batch row {row}"
    run = f"[{start[row, query]}, {end[row, query]})"
    if holes[row, query]:
        raise ValueError(
            f"{name} sees {seen[row, query]} keys of {run}, which is not one run of keys; "
            "use another attn_implementation for this mask"
        )
    raise ValueError(
        f"{name} sees keys {run} after [{start[row, query - 1]}, {end[row, query - 1]}); "
        "neither bound may decrease; use another attn_implementation for this mask"
    )
