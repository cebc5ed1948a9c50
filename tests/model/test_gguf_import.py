"""A Llama of a GGUF file: its folder computes what the file says, and damage is a sentence."""

import struct

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from metamorph import libraries
from metamorph.cli.command import main
from metamorph.errors import UserError
from metamorph.model.gguf_import import import_gguf
from metamorph.model.language import Llama
from metamorph.model.opening import assemble
from metamorph.model.weights import read_json, read_tokenizer
from tests.model.test_llama import states_of
from tests.tiny_run import GRID, write_vision

pytest.importorskip("gguf", reason="needs the package gguf, of the extra gguf")
from tests.model.tiny_gguf import TOKENS, metadata_of, tensors_of, tiny_llama, write_gguf  # noqa: E402

IDS = torch.arange(0, 200) * 7 % len(TOKENS)


@pytest.fixture(scope="module")
def tiny():
    """A Llama, and the metadata and tensors of its file."""
    model = tiny_llama()
    return model, metadata_of(model), tensors_of(model)


@torch.no_grad()
def logits(folder) -> torch.Tensor:
    llama = Llama.from_pretrained(folder)
    return llama.head(states_of(llama, IDS))


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_unquantised_weights_are_those_of_the_model(tmp_path, tied):
    model = tiny_llama(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "a.gguf", metadata_of(model), tensors_of(model))
    import_gguf(path, tmp_path / "llama")
    found = load_file(tmp_path / "llama/model.safetensors")
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter), name
    torch.testing.assert_close(logits(tmp_path / "llama"), model(IDS[None]).logits[0])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_logits_are_those_of_transformers_on_the_same_file(tiny, tmp_path, kind):
    """Its own reader of GGUF shares no line with ours."""
    _, metadata, tensors = tiny
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors, kind)
    import_gguf(path, tmp_path / "llama")
    official = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    expected = official(IDS[None]).logits[0]
    torch.testing.assert_close(logits(tmp_path / "llama"), expected, atol=1e-4, rtol=0)


def test_bfloat16_stays(tiny, tmp_path):
    model, metadata, tensors = tiny
    import_gguf(write_gguf(tmp_path / "a.gguf", metadata, tensors, "BF16"), tmp_path / "llama")
    found = load_file(tmp_path / "llama/model.safetensors")
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight.bfloat16())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert read_json(tmp_path / "llama/config.json")["dtype"] == "bfloat16"


def test_the_folder_opens_as_a_language_model(tiny, tmp_path, capsys):
    _, metadata, tensors = tiny
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors)
    folder = tmp_path / "llama"
    assert main(["import", str(path), str(folder)]) == 0
    assert "licence by its file: apache-2.0" in capsys.readouterr().out
    settings = read_json(folder / "config.json")
    assert settings["rms_norm_eps"] == 1e-5 and settings["rope_theta"] == 100000.0
    write_vision(tmp_path / "siglip")
    model, tokenizer = assemble(folder, tmp_path / "siglip", grid=GRID)
    assert model.config.eos_ids == [2] and model.config.pad_id == 2
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]


def tokens_of(folder, text: str, add_special_tokens: bool = False) -> list[str]:
    tokenizer = read_tokenizer(folder)
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("<|im_end|>", "")
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    ("name", "spaces", "word"),
    [
        ("smollm", ["ĠĠ", "1", "2"], ["b", "r", "own"]),  # a digit does not take the space
        ("gpt-2", ["Ġ", "Ġ", "1", "2"], ["b", "r", "own"]),
        ("llama-bpe", ["Ġ", "Ġ", "1", "2"], ["brown"]),  # a word that is a token is taken whole
    ],
)
def test_text_is_split_as_in_training(tiny, tmp_path, name, spaces, word):
    _, metadata, tensors = tiny
    metadata = metadata | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": None}
    import_gguf(write_gguf(tmp_path / "a.gguf", metadata, tensors), tmp_path / "llama")
    assert tokens_of(tmp_path / "llama", "  12") == spaces
    assert tokens_of(tmp_path / "llama", "brown") == word
    assert tokens_of(tmp_path / "llama", "ä<|im_end|>") == ["Ã", "¤", "<|im_end|>"]
    begin = ["<|im_start|>"] if name == "llama-bpe" else []
    assert tokens_of(tmp_path / "llama", "a", add_special_tokens=True) == [*begin, "a"]


@torch.no_grad()
def test_the_scaling_of_llama_3_is_read_off_its_factors(tiny, tmp_path):
    """The file has its outcome alone, which transformers leaves out."""
    _, metadata, tensors = tiny
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 100000.0,
    }  # fmt: skip
    model = tiny_llama(rope_parameters=scaling)
    plain = 100000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = plain / model.model.rotary_emb.inv_freq
    assert 1 < factors.max() < 33
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors | {"rope_freqs.weight": factors})
    import_gguf(path, tmp_path / "llama")
    torch.testing.assert_close(logits(tmp_path / "llama"), model(IDS[None]).logits[0])
    slowest = factors * torch.tensor([1.0] * 7 + [0.997])  # a difference of 4e-9
    for other in (torch.linspace(1, 2, 8), slowest):
        write_gguf(path, metadata, tensors | {"rope_freqs.weight": other})
        with pytest.raises(UserError, match="rope_freqs.weight holds another scaling"):
            import_gguf(path, tmp_path / "other")
    write_gguf(path, metadata, tensors | {"rope_freqs.weight": torch.ones(8)})
    import_gguf(path, tmp_path / "unscaled")
    assert read_json(tmp_path / "unscaled/config.json")["rope_scaling"] is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "qwen2"}, "its architecture is 'qwen2', expected 'llama'"),
        ({"llama.expert_count": 8}, "a mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor is 4.0, a scaling that"),
        ({"llama.rope.scale_linear": 2.0}, "llama.rope.scale_linear is 2.0, a scaling that"),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0},
            "llama.rope.scaling.factor is 8.0, a scaling that",
        ),
        (
            {"llama.rope.scaling.type": "none", "llama.rope.scaling.attn_factor": 0.5},
            "llama.rope.scaling.attn_factor is 0.5, a scaling that",
        ),
        ({"llama.rope.freq_base": 0.0}, "rope_theta: expected a number above 0, got 0.0"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "rms_norm_eps: expected a number of"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, but a head has 16"),
        ({"llama.block_count": 3}, "the tensor 'blk.2.attn_norm.weight' is missing"),
        ({"llama.block_count": 1}, "the tensor 'blk.1.attn_k.weight' belongs to no part"),
        ({"llama.block_count": 4_000_000_000}, "num_hidden_layers: expected at most 1000"),
        ({"llama.block_count": None}, "the key 'num_hidden_layers' is missing"),
        ({"llama.feed_forward_length": 64}, "'blk.0.ffn_gate.weight' has shape (96, 64), but"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is 'llama', but only byte-level BPE"),
        ({"tokenizer.ggml.pre": "poro"}, "tokenizer.ggml.pre is 'poro'"),
        ({"tokenizer.ggml.tokens": [*TOKENS, "x"]}, "token_type: expected one type for each token"),
        ({"tokenizer.ggml.merges": ["a zzz"]}, "tokenizer.ggml.merges: not a byte-level BPE"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "tokenizer.ggml.bos_token_id is 9999, expected"),
        (
            {
                "tokenizer.ggml.tokens": [TOKENS[0], "<a b:7>", *TOKENS[2:]],
                "tokenizer.ggml.add_bos_token": True,
            },
            "tokenizer.ggml.bos_token_id: '<a b:7>' cannot be put before a text",
        ),
        (
            {"tokenizer.ggml.tokens": [*TOKENS, "xyz"], "tokenizer.ggml.token_type": [1] * 264},
            "264 tokens, but 263 rows for them",
        ),
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template is 3, expected a text"),
    ],
)
def test_what_this_llama_is_not(tiny, tmp_path, capsys, keys, message):
    _, metadata, tensors = tiny
    path = write_gguf(tmp_path / "a.gguf", metadata | keys, tensors)
    assert main(["import", str(path), str(tmp_path / "llama")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metamorph: {path}: ") and message in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": "linear"},
        {"llama.rope.scaling.factor": 1.0, "llama.rope.scale_linear": 0.0},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    ],
)
def test_what_scales_nothing_is_read(tiny, tmp_path, keys):
    _, metadata, tensors = tiny
    import_gguf(write_gguf(tmp_path / "a.gguf", metadata | keys, tensors), tmp_path / "llama")
    assert read_json(tmp_path / "llama/config.json")["rope_scaling"] is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"bos_token_id", b"eos_token_id", "the key 'tokenizer.ggml.eos_token_id' is there twice"),
        (b"blk.1.attn_k", b"blk.0.attn_k", "the tensor 'blk.0.attn_k.weight' is there twice"),
    ],
)
def test_what_is_there_twice(tiny, tmp_path, old, new, message):
    _, metadata, tensors = tiny
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(UserError, match=f"^{path}: {message}$"):
        import_gguf(path, tmp_path / "llama")


@pytest.mark.parametrize("name", ["rope_freqs.weight", "output_norm.weight"])
def test_a_type_that_cannot_be_decoded(tiny, tmp_path, name):
    """Of what is read for the settings, and of what is read when it is written."""
    _, metadata, tensors = tiny
    tensors = tensors | {"rope_freqs.weight": torch.ones(8)}
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors)
    data = bytearray(path.read_bytes())
    at = data.index(name.encode()) + len(name) + 12  # behind the name one dimension, and its size
    data[at : at + 4] = struct.pack("<I", 26)
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"^{path}: the tensor '{name}' is of type I32, which the"):
        import_gguf(path, tmp_path / "llama")
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_files_are_a_sentence(tiny, tmp_path):
    """Cut anywhere, and with numbers that are too large anywhere in the header."""
    _, metadata, tensors = tiny
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors)
    whole = path.read_bytes()
    header = whole.index(b"output.weight") + 100  # the tensors' names come last
    broken = [whole[:end] for end in range(0, len(whole) - 1, len(whole) // 40)]
    broken += [
        whole[:at] + struct.pack("<Q", 2**63 - 1) + whole[at + 8 :]
        for at in range(4, header, header // 150)
    ]
    refused = 0
    for number, data in enumerate(broken):
        path.write_bytes(data)
        try:
            import_gguf(path, tmp_path / f"{number}")
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path))
        else:
            assert len(data) == len(whole)  # a token or a name of another text
    assert refused > 60


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"PK", "not a GGUF file"),
        (4, struct.pack(">I", 3), "GGUF version 50331648, expected 2 or 3, little-endian"),
        (8, struct.pack("<Q", 2**40), "its header counts 1099511627776 tensors"),
        (16, struct.pack("<Q", 2**40), "its header counts 1099511627776 keys"),
    ],
)
def test_a_header_of_another_kind(tiny, tmp_path, at, data, message):
    _, metadata, tensors = tiny
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors)
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])
    with pytest.raises(UserError, match=message):
        import_gguf(path, tmp_path / "llama")


@pytest.mark.parametrize("option", ["--vision", "--grid", "--chat-template"])
def test_what_belongs_to_a_whole_model_is_refused(tmp_path, capsys, option):
    assert main(["import", "a.gguf", str(tmp_path / "out"), option, "4"]) == 2
    assert f"{option} does not apply" in capsys.readouterr().err


def test_a_folder_of_weights_needs_an_encoder(tmp_path, capsys):
    assert main(["import", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "for a folder of weights give --vision too" in capsys.readouterr().err


def test_without_the_package_it_is_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(libraries, "installed", lambda package: False)
    assert main(["import", str(tmp_path / "a.gguf"), str(tmp_path / "out")]) == 2
    assert "needs the package gguf (not installed; pip install gguf)" in capsys.readouterr().err
