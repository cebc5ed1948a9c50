"""A saved tokenizer without transformers: ids, texts and settings are those of transformers."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from metamorph.config import ModelConfig
from metamorph.data.conversation import ChatEncoder, Sample, Turn
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.errors import UserError
from metamorph.model.chat_template import ASSISTANT, USER
from metamorph.model.saved_tokenizer import SavedTokenizer, read_saved_tokenizer
from metamorph.model.tokenizer import add_image_tokens, open_tokenizer
from metamorph.model.weights import read_tokenizer
from metamorph.tokens import IMAGE_START
from tests.data.chat_styles import TEMPLATES, style_tokenizer

STYLES = ("toy", *TEMPLATES)
# What cuts text: words of the vocabularies, control tokens, blanks, bytes without a token.
PIECES = st.sampled_from(
    ["hello", " world", "what is this?", "\n", "\n\n", "  ", "<|im_end|>", "<s>", "</s>", "[INST]",
     "<|eot_id|>", "<image_start>", "<think>", "<|user|>", "é", "日本", "🙂", "\u0301", "\x00"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=8).map("".join)


@cache
def both(style: str) -> tuple[PreTrainedTokenizerFast, SavedTokenizer]:
    """A tokenizer with image tokens that was saved, as transformers reads it and as it is read
    without."""
    tokenizer = build_toy_tokenizer() if style == "toy" else style_tokenizer(style)
    add_image_tokens(tokenizer)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = read_saved_tokenizer(folder)
        assert isinstance(saved, SavedTokenizer)
        return read_tokenizer(folder), saved


@pytest.mark.parametrize("style", STYLES)
def test_settings_are_those_that_transformers_reads(style):
    expected, saved = both(style)
    assert saved.special_tokens_map == expected.special_tokens_map
    assert saved.chat_template == expected.chat_template
    assert (saved.eos_token, saved.pad_token) == (expected.eos_token, expected.pad_token)
    assert saved.get_vocab() == expected.get_vocab()
    added = [
        {token_id: repr(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        for tokenizer in (saved, expected)
    ]
    assert added[0] == added[1]
    for token_id in (*expected.get_vocab().values(), 10**6):
        assert saved.convert_ids_to_tokens(token_id) == expected.convert_ids_to_tokens(token_id)


@given(st.sampled_from(STYLES), TEXTS, st.booleans())
def test_ids_are_those_of_transformers(style, text, split):
    expected, saved = both(style)
    how = {"add_special_tokens": False, "split_special_tokens": split}
    assert saved.encode(text, **how) == expected.encode(text, **how)


@given(st.sampled_from(STYLES), st.lists(st.integers(0, 420), max_size=12), st.booleans())
def test_texts_are_those_of_transformers(style, token_ids, skip):
    expected, saved = both(style)
    known = [token_id for token_id in token_ids if token_id < len(expected.get_vocab())]
    how = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
    assert saved.decode(known, **how) == expected.decode(known, **how)


@given(st.sampled_from(STYLES), st.lists(TEXTS, min_size=3, max_size=3))
def test_conversations_are_encoded_alike(style, texts):
    turns = tuple(map(Turn, (USER, ASSISTANT, USER), texts))
    documents = [
        ChatEncoder(tokenizer, 4).encode_prompt(Sample("", turns)) for tokenizer in both(style)
    ]
    assert documents[0] == documents[1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """The toy tokenizer as it is saved before it has image tokens; tests change copies."""
    folder = tmp_path_factory.mktemp("toy")
    build_toy_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    return shutil.copytree(toy, tmp_path / "toy")


@pytest.mark.parametrize(
    "changes",
    [
        {"bos_token": "<new>"},  # not in tokenizer.json: transformers adds it
        {"extra_special_tokens": ["<new>"]},
        {"image_token": "<image_start>"},  # one more named token
        {"mask_token": {"content": "<image_start>", "__type": "AddedToken"}},
        {"chat_template": [{"name": "default", "template": "x"}]},
        {"added_tokens_decoder": {}},
        {"nobody_knows": 1},
    ],
)
def test_other_settings_are_left_to_transformers(folder, changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert isinstance(read_saved_tokenizer(folder), PreTrainedTokenizerFast)


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_more_files_are_left_to_transformers(folder, name):
    (folder / name).write_text("{}")
    assert isinstance(read_saved_tokenizer(folder), PreTrainedTokenizerFast)


@pytest.mark.parametrize("how", ["padding", "truncation"])
def test_padding_and_truncation_are_left_to_transformers(folder, how):
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_padding() if how == "padding" else core.enable_truncation(4)
    core.save(str(folder / "tokenizer.json"))
    assert isinstance(read_saved_tokenizer(folder), PreTrainedTokenizerFast)


def test_what_a_folder_lacks_is_added_as_transformers_adds_it(folder):
    """As a folder of an earlier version, whose template is Llama 3's whatever it says."""
    (folder / "config.json").write_text("{}")
    start = ModelConfig(folder=str(folder))
    expected, expected_ids = open_tokenizer(start)
    saved, ids = open_tokenizer(start, read_saved_tokenizer)
    assert isinstance(saved, SavedTokenizer) and ids == expected_ids
    assert saved.get_vocab() == expected.get_vocab() and IMAGE_START in saved.get_vocab()
    assert saved.chat_template == expected.chat_template is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", None),
    ],
)
def test_damaged_files_are_named(folder, name, content):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: (not readable as|no such file)") as caught:
        read_saved_tokenizer(folder)
    assert "\n" not in str(caught.value)
