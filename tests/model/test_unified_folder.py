"""The unified folder, and building a model from pretrained parts."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from metamorph.errors import UserError
from metamorph.model import MetaMorph, MetaMorphConfig, add_image_tokens, assemble
from tests.model.golden import golden_model, pack_case

WORDS = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", *(f"w{i}" for i in range(17))]
SPECIAL = {"eos_token": "<|eot_id|>"}
TEMPLATE = (
    "{% for message in messages %}{{ message.role + message.content + eos_token }}{% endfor %}"
)


def tiny_tokenizer(words=WORDS, **special) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def parts(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    llama = LlamaConfig(**sizes, **heads, vocab_size=20, eos_token_id=[0, 2, 999], bos_token_id=3)
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    tiny_tokenizer(**SPECIAL).save_pretrained(tmp_path / "llama")
    siglip = SiglipVisionConfig(**sizes, **heads, image_size=32, patch_size=8)
    SiglipVisionModel(siglip).save_pretrained(tmp_path / "siglip")
    return tmp_path / "llama", tmp_path / "siglip"


def test_assemble_looks_up_every_id(parts):
    model, tokenizer = assemble(*parts, grid=2)
    assert tokenizer.convert_tokens_to_ids(["<image_start>", "<image_end>"]) == [20, 21]
    assert tokenizer("w1<image_start>w2").input_ids == [4, 20, 5]
    config = model.config
    assert (config.image_start_id, config.image_end_id, config.pad_id) == (20, 21, 0)
    assert config.eos_ids == [0, 1, 2]  # tokenizer, well-known names and model config together
    assert (config.visual_width, config.tokens_per_image) == (16, 4)
    assert config.language.vocab_size == 22
    official = LlamaForCausalLM.from_pretrained(parts[0])
    for ours, theirs in [
        (model.language.model.embed_tokens.weight, official.model.embed_tokens.weight),
        (model.language.lm_head.weight, official.lm_head.weight),
    ]:
        torch.testing.assert_close(ours[:20], theirs)
        torch.testing.assert_close(ours[20:], theirs.mean(0).expand(2, -1))
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("vision."))


def test_assemble_keeps_trained_image_rows(parts):
    """A tokenizer and Llama that know the tokens already are left as they are."""
    model, tokenizer = assemble(*parts, grid=2)
    with torch.no_grad():
        model.language.model.embed_tokens.weight[20:] += 1
    model.language.save_pretrained(parts[0])
    tokenizer.save_pretrained(parts[0])
    again, _ = assemble(*parts, grid=2)
    assert torch.equal(
        again.language.model.embed_tokens.weight, model.language.model.embed_tokens.weight
    )


def test_unified_folder_round_trips(parts, tmp_path):
    model, tokenizer = assemble(*parts, grid=2)
    model.save_pretrained(tmp_path / "unified", tokenizer)
    again = MetaMorph.from_pretrained(tmp_path / "unified")
    assert again.config == model.config
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in again.vision.parameters())
    assert again.vision(torch.randn(1, 3, 32, 32)).shape == (1, 4, 16)
    saved = AutoTokenizer.from_pretrained(tmp_path / "unified")
    assert saved.get_vocab() == tokenizer.get_vocab() and saved.pad_token == "<|end_of_text|>"
    files = {path.name for path in (tmp_path / "unified").iterdir()}
    assert {"config.json", "model.safetensors", "encoder", "tokenizer.json"} <= files
    assert not [name for name in files if name.startswith(".")]
    assert json.loads((tmp_path / "unified/config.json").read_text())["model_type"] == "metamorph"


def test_dtype_can_be_chosen_on_loading(tmp_path):
    golden_model().save_pretrained(tmp_path)
    assert MetaMorph.from_pretrained(tmp_path).vision is None
    half = MetaMorph.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    packed = pack_case("c")
    with torch.no_grad():
        states = half(*packed.inputs)
        exact = golden_model()(*packed.inputs)
        assert half.predict_visual(states).dtype == torch.float32
    assert states.dtype == torch.bfloat16
    assert (states - exact).norm() / exact.norm() < 0.05


def test_transformers_finds_the_llama_in_the_unified_folder(tmp_path):
    model, packed = golden_model(), pack_case("d")
    model.save_pretrained(tmp_path)
    language = json.loads((tmp_path / "config.json").read_text())["language"]
    official = LlamaForCausalLM.from_pretrained(tmp_path, config=LlamaConfig(**language))
    with torch.no_grad():
        expected = official(packed.token_ids[None]).logits[0]
        logits = model.language.head(model(*packed.inputs))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_width": 47}, r"'projector.linear_1.weight' has shape \(64, 48\).*\(64, 47\)"),
        ({"vision_head_hidden_size": 9}, r"'vision_head.linear_1.weight' has shape"),
        ({"model_type": "llama"}, "expected model_type 'metamorph', got 'llama'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"image_start_id": 300}, "token id 300 is outside the vocabulary of 300"),
        ({"eos_ids": []}, "eos_ids: expected at least one"),
        ({"grid": 0}, "grid: expected at least 1, got 0"),
        ({"grid": "8"}, "grid: expected int, got '8'"),
        ({"grid": True}, "grid: expected int, got True"),
        ({"pad_id": None}, "pad_id: expected int, got None"),
        ({"eos_ids": 3}, r"eos_ids: expected list\[int\], got 3"),
        ({"eos_ids": [3, "4"]}, r"eos_ids: expected list\[int\]"),
        ({"projector_hidden_size": 1.5}, r"projector_hidden_size: expected int \| None, got 1.5"),
        ({"language": 5}, "language config: expected a JSON object, got 5"),
        ({"language": None}, "language config: expected a JSON object, got None"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, change, message):
    golden_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        MetaMorph.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))  # whose folder it is


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "64"}, "language.hidden_size: expected int, got '64'"),
        ({"num_attention_heads": 0}, "language.num_attention_heads: expected at least 1, got 0"),
        ({"rope_theta": "high"}, "language.rope_theta: expected float, got 'high'"),
        ({"rope_theta": float("nan")}, "language.rope_theta: expected float, got nan"),
        ({"tie_word_embeddings": 1}, "language.tie_word_embeddings: expected bool, got 1"),
        ({"rope_parameters": 5}, "rope_parameters is 5, expected an object"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": "x", "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
            "rope_scaling: factor needs a number above 0, got 'x'",
        ),
    ],
)  # fmt: skip
def test_wrong_types_of_the_language_config_are_named(change, message):
    data = golden_model().config.to_dict()
    data["language"] |= {"head_dim": None} | change
    with pytest.raises(UserError, match=message):
        MetaMorphConfig.from_dict(data)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_visual_loss_is_one_minus_the_cosine_of_the_prediction(count, reduction):
    model = golden_model()
    torch.manual_seed(0)
    states = torch.randn(count, model.config.language.hidden_size, requires_grad=True)
    targets = torch.randn(count, model.config.visual_width)
    loss = model.visual_loss(states, targets, reduction=reduction)
    cosines = (model.predict_visual(states) * torch.nn.functional.normalize(targets)).sum(-1)
    each = 1 - cosines
    expected = each.sum() / (max(count, 1) if reduction == "mean" else 1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert states.grad.isfinite().all() and model.vision_head.linear_1.weight.grad is not None
    if reduction == "sum":
        assert torch.equal(loss, model.visual_loss(states, targets))


def test_a_missing_key_is_named():
    data = golden_model().config.to_dict()
    del data["pad_id"]
    with pytest.raises(UserError, match="'pad_id' is missing"):
        MetaMorphConfig.from_dict(data)


def test_an_encoder_of_another_width_is_refused(parts):
    model, _ = assemble(*parts, grid=2)
    config = golden_model().config
    with pytest.raises(UserError, match=r"encoder: grid and width are \(2, 16\), expected \(4, 48"):
        MetaMorph(config, vision=model.vision)


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(UserError, match="chat template: .*'eos_token' is undefined"):
        add_image_tokens(tiny_tokenizer([f"w{i}" for i in range(4)]))


def test_a_tokenizer_keeps_its_own_padding_and_end():
    words = ["w0", "<pad>", "</s>"]
    ids = add_image_tokens(tiny_tokenizer(words, eos_token="</s>", pad_token="<pad>"))
    images = {"image_start_id": 3, "image_end_id": 4, "added_ids": [3, 4]}
    assert ids == images | {"eos_ids": [2], "pad_id": 1}
