"""Parts computed by other libraries: same states, gradients and state dict, clear refusals."""

import inspect
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from metamorph.config import ModelConfig
from metamorph.errors import UserError
from metamorph.generation import Prompt, generate
from metamorph.model.fused_parts import FUNCTIONS, choose_parts, install_parts
from metamorph.model.language_config import LanguageConfig
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph_kernels import intervals_from_rows, key_intervals
from tests import fake_libraries

CPU = torch.device("cpu")
LENGTHS = (9, 1, 6)
CHOICES = [
    ({"attention": "flash_attn"}, "flash-attn", {"flash_attn_varlen_func"}),
    ({"attention": "flash_attn"}, "flash-attn-3", {"flash_attn_varlen_func"}),
    ({"attention": "flash_attn_4"}, "flash-attn-4", {"flash_attn_varlen_func"}),
    ({"attention": "varlen"}, "torch-varlen", {"varlen_attn"}),
    ({"attention": "xformers"}, "xformers", {"memory_efficient_attention"}),
    ({"rms_norm": "apex"}, "apex", {"fused_rms_norm_affine"}),
    ({"rms_norm": "liger"}, "liger-kernel", {"LigerRMSNormFunction"}),
    ({"rotary": "liger"}, "liger-kernel", {"LigerRopeFunction"}),
    ({"swiglu": "liger"}, "liger-kernel", {"LigerSiLUMulFunction"}),
    (
        {"rms_norm": "liger", "rotary": "liger", "swiglu": "liger"},
        "liger-kernel",
        {"LigerRMSNormFunction", "LigerRopeFunction", "LigerSiLUMulFunction"},
    ),
]


@pytest.fixture(autouse=True)
def gpu_without_libraries(monkeypatch):
    fake_libraries.remove_all(monkeypatch)
    fake_libraries.pretend_gpu(monkeypatch)


@pytest.fixture
def model(request):
    language = LanguageConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, vocab_size=50, rms_norm_eps=1e-2,
        model_type=getattr(request, "param", "llama"),
    )  # fmt: skip
    ids = {"image_start_id": 1, "image_end_id": 2, "eos_ids": [3], "pad_id": 0}
    config = MetaMorphConfig(language, visual_width=10, grid=2, **ids)
    torch.manual_seed(0)
    model = MetaMorph(config)
    for parameter in model.parameters():  # larger than usual, so that mistakes show
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model


def fused(model: MetaMorph, choice: dict, dtype=torch.float32) -> MetaMorph:
    other = deepcopy(model)
    install_parts(other, choose_parts(ModelConfig(**choice), CPU), CPU, dtype)
    fake_libraries.CALLS.clear()
    return other


def states_and_gradients(model: MetaMorph, bf16: bool) -> dict[str, torch.Tensor]:
    """Of a row of three documents, with an image in the first: "states", and by parameter."""
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(1, 4, 10, generator=generator), dim=-1)
    weights = torch.randn(sum(LENGTHS), 24, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = model(
            torch.randint(4, 50, (sum(LENGTHS),), generator=generator),
            torch.cat([torch.arange(length) for length in LENGTHS]),
            key_intervals(LENGTHS),
            features,
            torch.arange(2, 6),
        )
    (states * weights).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"states": states.detach()}


@pytest.mark.parametrize(
    ("model", "bf16"),
    [("llama", False), ("llama", True), ("qwen3", False)],
    indirect=["model"],
    ids=["llama-fp32", "llama-bf16", "qwen3-fp32"],
)
@pytest.mark.parametrize(("choice", "library", "calls"), CHOICES)
def test_the_same_states_gradients_and_names(monkeypatch, model, choice, library, calls, bf16):
    fake_libraries.install(monkeypatch, library)
    other = fused(model, choice, torch.bfloat16 if bf16 else torch.float32)
    assert list(other.state_dict()) == list(model.state_dict())
    assert {type(module) for module in other.modules()} == {type(m) for m in model.modules()}

    exact = states_and_gradients(deepcopy(model), bf16=False)
    default = states_and_gradients(model, bf16)
    found = states_and_gradients(other, bf16)
    assert set(fake_libraries.CALLS) == calls
    assert found.keys() == exact.keys() and found["states"].dtype == default["states"].dtype
    for name, truth in exact.items():
        allowed = 2 * (default[name] - truth).norm() + 1e-5 * truth.norm()
        assert (found[name] - truth).norm() <= allowed, name


def test_flash_attn_3_comes_before_2(monkeypatch, model):
    fake_libraries.install(monkeypatch, "flash-attn", flash_attn_varlen_func=None)
    fake_libraries.install(monkeypatch, "flash-attn-3")
    states_and_gradients(fused(model, {"attention": "flash_attn"}), bf16=False)
    assert len(fake_libraries.CALLS) == 2  # one a layer


def test_flash_attn_is_deterministic_if_torch_is(monkeypatch, model):
    seen = []

    def varlen(*arguments, deterministic, **options):
        seen.append(deterministic)
        return fake_libraries.flash_attn_varlen_func(*arguments, **options)

    fake_libraries.install(monkeypatch, "flash-attn", flash_attn_varlen_func=varlen)
    other = fused(model, {"attention": "flash_attn"})
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    seen.clear()
    states_and_gradients(other, bf16=False)
    assert seen == [True, True]


def test_defaults_ask_for_no_library(model):
    assert choose_parts(ModelConfig(), CPU) == {}


@pytest.mark.parametrize(("key", "name"), FUNCTIONS)
def test_a_missing_library_is_named(key, name):
    reason = "ModuleNotFoundError" if name == "varlen" else "not installed"  # a torch without it
    with pytest.raises(UserError, match=rf"model\.{key}: {name} cannot .*: {reason}"):
        choose_parts(ModelConfig(**{key: name}), CPU)


def test_all_that_could_compute_attention_is_named():
    message = r"flash-attn-3: not installed; flash-attn: not installed\); see docs/libraries\.md"
    with pytest.raises(UserError, match=message):
        choose_parts(ModelConfig(attention="flash_attn"), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("choice", "library", "calls"), CHOICES[:-1])
def test_what_fails_at_its_first_call_fails_before_training(
    monkeypatch, model, choice, library, calls, dtype
):
    def refuse(*arguments, **options):
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        assert {x.dtype for x in tensors if x.is_floating_point()} <= {dtype}
        raise RuntimeError("no kernel image\nand more")

    # The probe of flash-attn 4 asks what its function takes.
    refuse.__signature__ = inspect.signature(fake_libraries.flash_attn_4_varlen_func)

    class Refuse:
        apply = refuse

    [name] = calls
    fake_libraries.install(monkeypatch, library, **{name: Refuse if "Liger" in name else refuse})
    [key] = choice
    message = rf"model\.{key}: .*{dtype} \(RuntimeError: no kernel image\)"
    with pytest.raises(UserError, match=message):
        fused(model, choice, dtype)


@pytest.mark.parametrize(
    ("library", "name", "says"),
    [
        ("flash-attn", "flash_attn", "flash_attn"),
        ("flash-attn-3", "flash_attn", "flash_attn"),
        ("flash-attn-4", "flash_attn_4", "flash_attn"),
        ("torch-varlen", "varlen", "varlen"),
        ("xformers", "xformers", "xformers"),
    ],
)
def test_other_than_causal_documents_are_refused(monkeypatch, model, library, name, says):
    fake_libraries.install(monkeypatch, library)
    other = fused(model, {"attention": name})
    token = torch.arange(8)
    window = intervals_from_rows((token - 2).clamp(min=0), token + 1)
    assert window.causal
    message = f"intervals: {says} computes documents that are causal"
    for intervals in (key_intervals([8], bidirectional_spans=[(1, 5)]), window):
        with pytest.raises(ValueError, match=message):
            other(token, token, intervals, torch.zeros(0, 4, 10), token[:0])


def test_generation_agrees(monkeypatch, model):
    """Norms, rotation and activation serve it too; its attention stays ours, spans and all."""
    fake_libraries.install(monkeypatch, "liger-kernel")
    fake_libraries.install(monkeypatch, "flash-attn")
    other = fused(
        model,
        {"attention": "flash_attn", "rms_norm": "liger", "rotary": "liger", "swiglu": "liger"},
    )
    features = F.normalize(torch.randn(1, 4, 10), dim=-1)
    prompts = [
        Prompt([5, 6, 7]),
        Prompt([1, 0, 0, 0, 0, 2, 8], range(1, 5), features, bidirectional_spans=[(1, 5)]),
    ]
    expected = generate(model, prompts, max_new_tokens=12)
    found = generate(other, prompts, max_new_tokens=12)
    assert "flash_attn_varlen_func" not in fake_libraries.CALLS
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.finish_reason == theirs.finish_reason
        assert len(mine.segments) == len(theirs.segments)
        for ours, default in zip(mine.segments, theirs.segments, strict=True):
            assert type(ours) is type(default)
            if hasattr(ours, "features"):
                torch.testing.assert_close(ours.features, default.features, atol=1e-4, rtol=1e-4)
            else:
                assert ours.token_ids == default.token_ids
