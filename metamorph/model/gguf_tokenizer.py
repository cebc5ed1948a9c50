"""The tokenizer that a GGUF file describes: byte-level BPE, as Llama 3 and SmolLM have it.

The file holds vocabulary, merges and ids; how text is split before it is merged, it says by a name
alone. What the names mean is here, and one that is not known is an error: a wrong split gives other
tokens than those of training, and nobody would notice.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing

from metamorph.errors import UserError, in_words, shown

KEYS = "tokenizer.ggml."
CONTROL, OWN = 3, 4  # token types: special, and added by the model's makers as plain text
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of text, of a turn, of a message
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
DIGITS = ("smollm",)  # each digit alone, then as GPT-2
GPT2 = ("gpt-2",)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_of(metadata: dict[str, Any]):
    """A transformers tokenizer with the file's chat template. Raises `UserError`."""
    from transformers import PreTrainedTokenizerFast  # takes long

    model, name = metadata.get(f"{KEYS}model"), metadata.get(f"{KEYS}pre")
    if model != "gpt2":
        raise UserError(
            f"its tokenizer is {shown(model)}, but only byte-level BPE ('gpt2', as of Llama 3) is "
            f"read; start from the model's Hugging Face folder"
        )
    words = _words(name)
    tokens = _texts(metadata, "tokens")
    merges = []
    for merge in _texts(metadata, "merges"):
        first, _, second = merge.partition(" ")
        merges.append((first, second))
    types = metadata.get(f"{KEYS}token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{KEYS}token_type: expected one type for each token")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{KEYS}tokens: some token is there twice")
    try:
        # Llama 3 takes a word that is a token whole, whatever its merges would make of it.
        core = Tokenizer(BPE(vocabulary, merges, ignore_merges=name in LLAMA3))
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise UserError(f"{KEYS}merges: not a byte-level BPE: {in_words(error)}") from error
    core.pre_tokenizer, core.decoder = words, ByteLevelDecoder()
    core.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, OWN)
        ]
    )
    named = {}
    for token, key in NAMED.items():
        index = token_id(metadata, key)
        if index is not None:
            named[token] = tokens[index]
    if metadata.get(f"{KEYS}add_bos_token", name in LLAMA3) and "bos_token" in named:
        begin = named["bos_token"]
        try:  # what follows a colon, a template takes for a number
            core.post_processor = TemplateProcessing(
                single=[begin, "$A"], pair=[begin, "$A", "$B"],
                special_tokens=[(begin, vocabulary[begin])],
            )  # fmt: skip
        except Exception as error:
            raise UserError(
                f"{KEYS}bos_token_id: {shown(begin)} cannot be put before a text: {in_words(error)}"
            ) from error
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise UserError(f"tokenizer.chat_template is {shown(template)}, expected a text")
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **named)


def token_id(metadata: dict[str, Any], key: str) -> int | None:
    """A token's id by its key in the file, or None. `UserError` if there is no such token."""
    index, count = metadata.get(KEYS + key), len(_texts(metadata, "tokens"))
    if index is not None and (type(index) is not int or not 0 <= index < count):
        raise UserError(f"{KEYS}{key} is {shown(index)}, expected the id of one of {count} tokens")
    return index


def stop_ids(metadata: dict[str, Any]) -> list[int]:
    """The ids at which the file says that generation stops."""
    found = [token_id(metadata, key) for key in STOPS]
    return sorted({index for index in found if index is not None})


def _words(name: object) -> PreTokenizer:
    """What splits text into the words that are merged, by the file's name for it."""
    if name in LLAMA3:
        parts = Split(Regex(LLAMA3_WORDS), "isolated"), ByteLevel(False, use_regex=False)
    elif name in DIGITS:
        parts = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
    elif name in GPT2:
        parts = (ByteLevel(add_prefix_space=False),)
    else:
        known = ", ".join((*LLAMA3, *DIGITS, *GPT2))
        raise UserError(
            f"{KEYS}pre is {shown(name)}, which says how text is split into words, but only "
            f"{known} are known; start from the model's Hugging Face folder"
        )
    return Sequence(list(parts))


def _texts(metadata: dict[str, Any], key: str) -> list[str]:
    values = metadata.get(KEYS + key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{KEYS}{key}: expected a list of texts, got {shown(values)}")
    return values
