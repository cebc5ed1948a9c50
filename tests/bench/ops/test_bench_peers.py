"""Peers are called as their signatures say (signatures.json), by stand-ins that compute it all."""

import importlib
import importlib.metadata
import inspect
import json
import random
import sys
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench.harness.documents import SyntheticRow, equal_row, packed_row
from bench.ops import peers, torch_peers
from bench.ops.package_peers import CAUSAL, FULL, INVERSE_CAUSAL, corner_slices, row_slices
from metamorph_kernels import interval_attention, reference

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECORDS = json.loads((Path(__file__).parent / "signatures.json").read_text())
ROWS = {
    "spans": SyntheticRow((4, 9, 1, 8), ((1, 3), (6, 12), (15, 17), (17, 18), (20, 22))),
    "documents": SyntheticRow((4, 9, 1, 8)),
    "one document": SyntheticRow((11,)),
}
FLASH = ("flash-attn 2", "flash-attn 3", "flash-attn 4")


def signature(record):
    """Of "query, key, scale=, *, window=": what has a default ends in =."""
    kind, parameters = Parameter.POSITIONAL_OR_KEYWORD, []
    for name in record["parameters"].split(", "):
        if name == "*":
            kind = Parameter.KEYWORD_ONLY
        else:
            default = None if name.endswith("=") else Parameter.empty
            parameters.append(Parameter(name.removesuffix("="), kind, default=default))
    return inspect.Signature(parameters)


def records(function, version=""):
    return [r for r in RECORDS if r["function"] == function and r["version"].startswith(version)]


def stand_in(record, compute):
    """A function of the recorded signature: `compute` gets each argument under its name."""
    recorded = signature(record)

    def function(*args, **kwargs):
        bound = recorded.bind(*args, **kwargs)
        bound.apply_defaults()
        return compute(SimpleNamespace(**bound.arguments))

    function.__signature__ = recorded
    return function


def install(monkeypatch, record, compute):
    """Put a stand-in where the peer would be."""
    module = sys.modules.get(record["module"]) or ModuleType(record["module"])
    monkeypatch.setitem(sys.modules, record["module"], module)
    monkeypatch.setattr(module, record["function"], stand_in(record, compute), raising=False)


def masked(q, k, v, visible):
    """Attention of q [T, Hq, D], k and v [T, Hkv, D] under a mask [T, T]."""
    q, k, v = torch_peers.heads_first(q, k, v)
    out = F.scaled_dot_product_attention(q, k, v, visible, enable_gqa=True)
    return torch_peers.tokens_first(out)


def below_diagonal(bounds):
    """bool [T, T]: the causal mask of documents between these bounds."""
    document = torch.bucketize(torch.arange(bounds[-1]), bounds, right=True)
    return (document[:, None] == document).tril()


def leaves_of(row):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(row.tokens, heads, 8, generator=generator) for heads in (4, 2, 2))


def check(name, row):
    """The provider of that name, with whatever stands in for its package, is right."""
    [provider] = [provider for provider in peers.PROVIDERS if provider.name == name]
    assert row.mask in provider.method.masks
    leaves = leaves_of(row)
    expected = interval_attention(*leaves, row.intervals(CPU), impl="torch")
    torch.testing.assert_close(provider.method.prepare(row, leaves)(*leaves), expected)


@pytest.mark.parametrize("mask", peers.CAUSAL)
@pytest.mark.parametrize("name", FLASH)
def test_flash_attention(name, mask, monkeypatch):
    module = {"flash-attn 2": "flash_attn", "flash-attn 3": "flash_attn_interface"}
    [record] = [
        record
        for record in records("flash_attn_varlen_func")
        if record["module"] == module.get(name, "flash_attn.cute")
    ]

    def compute(given):
        assert given.causal is True
        assert given.max_seqlen_q == given.max_seqlen_k == max(ROWS[mask].lengths)
        assert torch.equal(given.cu_seqlens_q, given.cu_seqlens_k)
        assert given.cu_seqlens_q.dtype == torch.int32
        out = masked(given.q, given.k, given.v, below_diagonal(given.cu_seqlens_q))
        return (out, None) if name == "flash-attn 4" else out

    install(monkeypatch, record, compute)
    check(name, ROWS[mask])


@pytest.mark.parametrize("mask", peers.CAUSAL)
@pytest.mark.parametrize("record", records("varlen_attn"), ids=lambda record: record["version"])
def test_varlen_attn(record, mask, monkeypatch):
    def compute(given):
        assert given.window_size == (-1, 0)
        assert given.max_q == given.max_k == max(ROWS[mask].lengths)
        assert getattr(given, "enable_gqa", True)
        return masked(given.query, given.key, given.value, below_diagonal(given.cu_seq_q))

    importlib.import_module(record["module"])
    install(monkeypatch, record, compute)
    check("varlen_attn", ROWS[mask])


@pytest.mark.parametrize("mask", ROWS)
@pytest.mark.parametrize("name", ["cuDNN flex", "cuDNN flex, one row"])
def test_cudnn_flex_attention(name, mask, monkeypatch):
    """Endpoints F of a query: its keys are [0, F0) and [F1, F2), and so on, of its sequence."""
    row = ROWS[mask]

    def plan(given):
        assert given.build_backward is True
        assert given.mask_func.dtype == torch.int32 and given.mask_func.is_contiguous()
        return given

    def compute(given):
        plan, q = given.mask_plan, given.q
        assert (q.shape, q.dtype) == (plan.q.shape, plan.q.dtype)
        [endpoints] = plan.mask_func  # [endpoints, T]
        assert (endpoints.diff(dim=0) >= 0).all()
        key = torch.arange(row.tokens)
        if plan.cu_seqlens_q is None:
            assert q.shape == (1, row.tokens, 4, 8)
            first = torch.zeros(row.tokens, 1)
        else:
            assert plan.max_seqlen_q == plan.max_seqlen_k == max(row.lengths)
            bounds = plan.cu_seqlens_k
            first = bounds[torch.bucketize(key, bounds, right=True) - 1][:, None]
        visible = key < first + endpoints[0][:, None]
        for start, end in endpoints[1:].unflatten(0, (-1, 2)):
            visible |= (first + start[:, None] <= key) & (key < first + end[:, None])
        visible &= first <= key
        out = masked(*(x.view(row.tokens, -1, 8) for x in (q, given.k, given.v)), visible)
        return out.view(q.shape)

    for function, stand_in in (("create_mask_plan", plan), ("flex_attn_func", compute)):
        [record] = records(function)
        install(monkeypatch, record, stand_in)
    check(name, row)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask", ROWS)
@pytest.mark.parametrize("version", ["torch 2.11", "torch 2.13"])
@pytest.mark.parametrize(
    ("name", "backend"), [("FlexAttention", "AUTO"), ("FlexAttention on flash-attn 4", "FLASH")]
)
def test_flex_attention(name, backend, version, mask, monkeypatch):
    kernel, builder = torch_peers.flex_attention, torch_peers.create_block_mask

    def compute(given):
        assert given.kernel_options == {"BACKEND": backend} and given.enable_gqa is True
        return kernel(given.query, given.key, given.value, None, given.block_mask, enable_gqa=True)

    def build(given):
        return builder(given.mask_mod, given.B, given.H, given.Q_LEN, given.KV_LEN, given.device)

    for function, body in (("flex_attention", compute), ("create_block_mask", build)):
        [record] = records(function, version)
        monkeypatch.setattr(torch_peers, function, stand_in(record, body))
    check(name, ROWS[mask])


def painted(slices, tokens):
    """int [T, T]: how many slices show a query (row) a key (column), by MagiAttention's types."""
    count = torch.zeros(tokens, tokens, dtype=torch.int64)
    for (first, last), (start, end), kind in slices:
        assert first < last and start < end
        query, key = torch.arange(first, last)[:, None], torch.arange(start, end)
        count[first:last, start:end] += {
            FULL: torch.ones(last - first, end - start, dtype=torch.bool),
            CAUSAL: end - key >= last - query,  # the last query sees the last key
            INVERSE_CAUSAL: key - start >= query - first,  # the first query sees the first key
        }[kind]
    return count


@pytest.mark.parametrize("mask", ROWS)
@pytest.mark.parametrize(
    "record", records("flex_flash_attn_func"), ids=lambda record: record["version"]
)
@pytest.mark.parametrize("name", ["MagiAttention", "MagiAttention, corners"])
def test_magi_attention(name, record, mask, monkeypatch):
    row = ROWS[mask]
    if name != "MagiAttention" and mask != "spans":
        pytest.skip("as MagiAttention")

    def compute(given):
        queries, keys, types = given.q_ranges, given.k_ranges, given.attn_type_map
        assert {queries.dtype, keys.dtype, types.dtype} == {torch.int32}
        apart = (queries[1:, 0] >= queries[:-1, 1]).all().item()
        assert given.disable_fwd_atomic_reduction == apart
        slices = zip(queries.tolist(), keys.tolist(), types.tolist(), strict=True)
        return masked(given.q, given.k, given.v, painted(slices, row.tokens) > 0), None

    install(monkeypatch, record, compute)
    check(name, row)


def random_row(seed):
    """Few tokens: spans beside each other, spans of one token, spans that fill a document."""
    generator = random.Random(seed)
    lengths, spans = [generator.randint(1, 9) for _ in range(generator.randint(1, 5))], []
    for first, end, _ in SyntheticRow(tuple(lengths)).documents:
        token = first
        while token < end:
            start = generator.randint(token, end)
            token = generator.randint(start, end)
            if start < token:
                spans.append((start, token))
            token += generator.randint(0, 2)
    return SyntheticRow(tuple(lengths), tuple(spans))


@pytest.mark.parametrize("slices", [row_slices, corner_slices])
def test_slices_are_the_mask_and_do_not_overlap(slices):
    rows = [random_row(seed) for seed in range(100)]
    for row in [*rows, packed_row(600, "spans"), equal_row(24, 6)]:
        mask = reference.interval_mask(row.intervals(CPU))
        assert torch.equal(painted(slices(row), row.tokens), mask.long())


def test_slices_by_rows_share_no_query():
    for seed in range(100):
        queries = [query for query, _, _ in row_slices(random_row(seed))]
        assert all(last <= first for (_, last), (first, _) in pairwise(queries))


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r['function']} of {r['version']}")
def test_records_are_true_of_what_is_installed(record):
    package, version = record["version"].split(" ", 1)
    try:
        installed = importlib.metadata.version(package.rstrip(","))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    if not f"{installed}.".startswith(f"{version}."):
        pytest.skip(f"version {installed}")
    function = getattr(importlib.import_module(record["module"]), record["function"])
    actual = inspect.signature(function).parameters.values()
    recorded = signature(record).parameters.values()
    for one, other in zip(actual, recorded, strict=True):
        assert (one.name, one.kind) == (other.name, other.kind)
        assert (one.default is Parameter.empty) == (other.default is Parameter.empty)


def test_who_cannot_compute_a_mask_says_so():
    reasons = {
        mask: {p.name: p.method.refusal(row) or p.absence(CPU) for p in peers.PROVIDERS}
        for mask, row in ROWS.items()
    }
    for name in (*FLASH, "varlen_attn", "xformers"):
        assert reasons["spans"][name] == "only causal masks"
        assert reasons["documents"][name] == reasons["one document"][name] == "needs a GPU"
    for name in ("FlexAttention on flash-attn 4", "cuDNN flex", "MagiAttention"):
        assert {reasons[mask][name] for mask in ROWS} == {"needs a GPU"}
    assert reasons["documents"]["MagiAttention, corners"] == "no spans, no corners"
    assert reasons["documents"]["SDPA cuDNN"] == "only one causal document"
    assert reasons["spans"]["ours torch"] is None
