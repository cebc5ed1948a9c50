"""Stand-ins of `fake_libraries` that attend: to packed documents, and to all that is there."""

import torch
from torch import Tensor

CALLS: list[str] = []  # what was called since the last `install` of a library


@torch.autocast("cpu", enabled=False)
def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention of each document, in fp32; q, k, v [T, H, D]."""
    dtype = q.dtype
    q, k, v = q.float(), k.float(), v.float()
    parts = []
    for query, key, value in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query, key) / q.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, value))
    return torch.cat(parts).to(dtype)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    assert dropout_p == 0 and not return_attn_probs
    CALLS.append("flash_attn_varlen_func")
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q[-1] == len(q) == len(k)
    lengths = cu_seqlens_q.diff().tolist()
    assert max_seqlen_q == max_seqlen_k == max(lengths) and causal and softmax_scale is None
    group = q.shape[1] // k.shape[1]
    # Head 0 .. group - 1 of q attend to head 0 of k, and so on.
    k, v = (torch.stack([x[:, h // group] for h in range(q.shape[1])], 1) for x in (k, v))
    return _attend(q, k, v, lengths)


def flash_attn_3_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None,
    seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
    pack_gqa=None, deterministic=False, sm_margin=0,
):  # fmt: skip
    out = flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        softmax_scale=softmax_scale, causal=causal, deterministic=deterministic,
    )  # fmt: skip
    return out, out.new_zeros(out.shape[1], out.shape[0])  # as its early versions did


def flash_attn_4_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
    min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None,
    mask_mod=None, block_sparse_tensors=None, aux_tensors=None, aux_scalars=None,
    return_lse=False, scheduler_metadata=None, seqlen_k_per_split=None,
    disable_scheduler_metadata=False, gather_bwd_recompute_p=False, gather_bwd_token_chunk=None,
):  # fmt: skip
    assert not return_lse
    out = flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        softmax_scale=softmax_scale, causal=causal, deterministic=deterministic,
    )  # fmt: skip
    return out, None  # a pair even where no lse was asked for


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
    window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert window_size == (-1, 0) and return_aux is None
    assert enable_gqa or query.shape[1] == key.shape[1]
    out = flash_attn_varlen_func(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, softmax_scale=scale, causal=True
    )
    CALLS[-1] = "varlen_attn"
    return out


class BlockDiagonalCausalMask:
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert kv_seqlen is None and isinstance(device, torch.device)
        mask = cls()
        mask.lengths = list(q_seqlen)
        return mask


def memory_efficient_attention(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    CALLS.append("memory_efficient_attention")
    assert query.ndim == 4 and key.shape == value.shape
    if attn_bias is None:
        assert scale is None and op is None
        return _attend_to_all(query, key, value)
    assert len(query) == 1 and query.shape == key.shape
    assert isinstance(attn_bias, BlockDiagonalCausalMask) and scale is None
    return _attend(query[0], key[0], value[0], attn_bias.lengths)[None]


@torch.autocast("cpu", enabled=False)
def _attend_to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without a mask, in fp32; q [B, T, H, D], k, v [B, S, H, D]."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.float()).to(q.dtype)


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert dropout_p == 0 and softmax_scale is None and not causal and not return_attn_probs
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    CALLS.append("flash_attn_func")
    return _attend_to_all(q, k, v)


def flash_attn_3_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
    pack_gqa=None, deterministic=False, sm_margin=0,
):  # fmt: skip
    out = flash_attn_func(q, k, v, softmax_scale=softmax_scale, causal=causal)
    return out, out.new_zeros(len(out), out.shape[2], out.shape[1])  # as its early versions did
