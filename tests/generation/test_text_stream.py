"""Text streams say, piece by piece, what a tokenizer says of all tokens at once."""

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.generation.text_stream import TextStream
from metamorph.model.tokenizer import add_image_tokens

CORPUS = [
    "a red circle and a blue square",
    "über 東京 naïve 🙂 é 👩‍👩‍👧",
    "the theme, then: it isn't",
] * 5
SPECIAL = ["<pad>", "<end>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def trained(model, decoder, pre_tokenizer, trainer, **options) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(
        CORPUS, trainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False, **options)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def toy():
    tokenizer = build_toy_tokenizer()
    add_image_tokens(tokenizer)
    return tokenizer


def byte_level():
    tokenizer = trained(
        models.BPE(), decoders.ByteLevel(), pre_tokenizers.ByteLevel(add_prefix_space=False),
        trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.add_tokens(["<tool>", "two words", "東"])  # of plain text, not special
    return tokenizer


def metaspace():
    return trained(
        models.Unigram(), decoders.Metaspace(), pre_tokenizers.Metaspace(),
        trainers.UnigramTrainer, unk_token="<pad>",
    )  # fmt: skip


def llama2():
    """SentencePiece as Llama 2 has it: bytes of what is not in the vocabulary, one blank cut."""
    letters = sorted({letter for text in CORPUS for letter in text if letter.isascii()} - {" "})
    pieces = ["<unk>", *SPECIAL, *BYTES, "▁", "▁▁", "▁a", "▁the", *letters, "th", "�", "東"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("t", "h")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def word_piece():
    return trained(
        models.WordPiece(unk_token="<pad>"), decoders.WordPiece(), pre_tokenizers.Whitespace(),
        trainers.WordPieceTrainer,
    )  # fmt: skip


def word_ends():
    return trained(
        models.BPE(end_of_word_suffix="</w>"), decoders.BPEDecoder("</w>"),
        pre_tokenizers.Whitespace(), trainers.BpeTrainer, end_of_word_suffix="</w>",
    )  # fmt: skip


KINDS = [toy, byte_level, metaspace, llama2, word_piece, word_ends]
of_kind = cache(lambda kind: kind())


def whole(tokenizer, token_ids) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cut(text: str, stop) -> tuple[str, bool]:
    """What stands before the first stop string, and whether there is one."""
    found = [text.index(one) for one in stop if one in text]
    return text[: min(found, default=len(text))], bool(found)


TEXTS = st.text(
    st.one_of(st.sampled_from("ath e\n▁東é🙂\u0301\u200d👩🏽�"), st.characters(codec="utf-8")),
    max_size=12,
)


@st.composite
def answers(draw):
    """A tokenizer, token ids of texts and of anything, cuts, and strings to stop at."""
    tokenizer = of_kind(draw(st.sampled_from(KINDS)))
    any_ids = st.lists(st.integers(0, len(tokenizer) + 5), max_size=6)  # some are no tokens
    of_text = TEXTS.map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    token_ids = sum(draw(st.lists(st.one_of(any_ids, of_text), max_size=12)), [])
    token_ids *= draw(st.sampled_from([1, 1, 9]))
    cuts = sorted(draw(st.sets(st.integers(0, len(token_ids)), max_size=len(token_ids))))
    parts = [token_ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(token_ids)], strict=True)]
    text = whole(tokenizer, token_ids)
    places = st.integers(0, max(0, len(text) - 1)).flatmap(
        lambda start: st.integers(1, 8).map(lambda length: text[start : start + length])
    )
    stop = draw(st.lists(st.one_of(places, st.text(min_size=1, max_size=3)), max_size=4))
    return tokenizer, parts, tuple(one for one in stop if one)


@given(answers())
def test_pieces_are_the_whole_text_before_the_first_stop_string(answer):
    tokenizer, parts, stop = answer
    expected, is_stopped = cut(whole(tokenizer, sum(parts, [])), stop)
    stream = TextStream(tokenizer, stop)
    text = ""
    for part in parts:
        text += stream.add(part)
        assert expected.startswith(text)  # nothing is taken back
    assert text + stream.flush() == expected
    assert stream.stopped == is_stopped


@given(answers())
def test_where_text_is_cut_into_pieces_changes_nothing(answer):
    tokenizer, parts, stop = answer
    stream, all_at_once = TextStream(tokenizer, stop), TextStream(tokenizer, stop)
    for part in parts:
        for token_id in part:
            stream.add([token_id])
    all_at_once.add(sum(parts, []))
    assert stream.stopped == all_at_once.stopped


@given(st.sampled_from(KINDS), st.lists(TEXTS, max_size=3))
def test_every_stretch_begins_anew(kind, texts):
    tokenizer = of_kind(kind)
    stream = TextStream(tokenizer)
    for text in texts:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        assert stream.add(token_ids) + stream.flush() == whole(tokenizer, token_ids)
    assert not stream.stopped


@pytest.mark.parametrize("kind", [toy, byte_level])
@given(text=TEXTS)
@example(text="👩‍👩‍👧 é 東京")
def test_a_character_comes_with_its_last_byte(kind, text):
    tokenizer = of_kind(kind)
    stream = TextStream(tokenizer)
    for character in text.replace("�", "?"):
        *first, last = tokenizer.encode(character, add_special_tokens=False)
        assert not stream.add(first)
        assert stream.add([last]) == character
    assert not stream.flush()


def test_bytes_that_are_no_text_become_replacement_characters():
    tokenizer = of_kind(llama2)
    bullet = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "•".encode()]
    invalid = tokenizer.convert_tokens_to_ids("<0xFF>")
    [letter] = tokenizer.encode("a", add_special_tokens=False)
    stream = TextStream(tokenizer)
    assert stream.add([letter, *bullet]) == "a"  # another byte may still spoil these
    assert stream.add([letter]) == "•a"
    assert stream.add([*bullet, invalid]) == ""
    assert stream.flush() == "����"


@pytest.mark.parametrize("kind", [toy, byte_level])
def test_an_unfinished_character_at_the_end_is_a_replacement_character(kind):
    tokenizer = of_kind(kind)
    token_ids = tokenizer.encode("𓀀", add_special_tokens=False)
    assert len(token_ids) > 1
    stream = TextStream(tokenizer)
    assert stream.add(token_ids[:-1]) == ""
    assert stream.flush() == "�"


def test_a_stop_string_is_held_back_until_it_is_known():
    tokenizer = of_kind(toy)

    def add(text):
        return stream.add(tokenizer.encode(text, add_special_tokens=False))

    stream = TextStream(tokenizer, ("###", "bcde", "cd"))
    assert add("x #") == "x "
    assert add("#y##") == "##y"
    assert add("abc") == "##a"
    assert add("d") == "" and not stream.stopped  # "cd", unless "bcde" began before it
    assert add("x") == "b" and stream.stopped
    assert add("more") == "" and stream.flush() == ""


def test_cost_is_linear_in_the_number_of_tokens():
    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer, self.decoded = tokenizer, 0

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def decode(self, token_ids, **options):
            self.decoded += len(token_ids)
            return self.tokenizer.decode(token_ids, **options)

    for kind, token in ((toy, "Ŀ"), (llama2, "<0xE2>"), (word_piece, "a"), (metaspace, "▁")):
        tokenizer = Counting(of_kind(kind))
        token_id = tokenizer.convert_tokens_to_ids(token)
        assert token_id is not None
        stream = TextStream(tokenizer, ("��x", "aaab"))
        for _ in range(1000):
            stream.add([token_id])
        stream.flush()
        assert tokenizer.decoded < 40 * 1000
