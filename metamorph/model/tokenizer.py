"""The tokenizer of a model: its chat template, the tokens added to it, and at which it stops."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from tokenizers import AddedToken

from metamorph.config import ModelConfig
from metamorph.errors import UserError, shown
from metamorph.folders import check_result
from metamorph.model.chat_template import (
    FIXED_DATE,
    LLAMA3,
    LLAMA3_NAME,
    LLAMA3_TOKENS,
    ChatTemplate,
)
from metamorph.model.weights import read_json, read_tokenizer
from metamorph.tokens import END_OF_TEXT, END_OF_TURN, IMAGE_END, IMAGE_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_TOKENS = (END_OF_TEXT, END_OF_TURN)  # an instruct Llama may end a turn with either
LARGEST_TEMPLATE = 1_000_000  # bytes


class TokenIds(TypedDict):
    """The fields of MetaMorphConfig that a tokenizer says."""

    image_start_id: int
    image_end_id: int
    pad_id: int
    eos_ids: list[int]
    added_ids: list[int]


def choose_template(tokenizer, chosen: str = "") -> str:
    """The jinja source of the chat format: `chosen` (a file, or llama3), else the tokenizer's own,
    else Llama 3's if the tokenizer has its tokens. `UserError` if there is none."""
    if chosen == LLAMA3_NAME:
        return LLAMA3
    source = _read_template(Path(chosen)) if chosen else tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if source is None:
        lacking = [name for name in LLAMA3_TOKENS if name not in tokenizer.get_vocab()]
        if lacking:
            raise UserError(
                f"model.chat_template: the tokenizer has no chat template and lacks Llama 3's "
                f"tokens {', '.join(lacking)}; give a file with a jinja template, or {LLAMA3_NAME}"
            )
        return LLAMA3
    if "strftime_now" in source and not source.startswith(FIXED_DATE):
        source = FIXED_DATE + source
    return source


def _read_template(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEMPLATE:
            raise UserError(f"model.chat_template: {path} is too large for a chat template")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"model.chat_template: {path} cannot be read ({reason}); expected a file with a jinja "
            f"template, or {LLAMA3_NAME}"
        ) from error


def add_image_tokens(tokenizer, chat_template: str = "") -> TokenIds:
    """Give the tokenizer its chat template, the two image tokens and the control tokens that the
    template writes and the tokenizer lacks; look up all ids that the model must know. Of its own
    template nothing is added where responses end without.

    A tokenizer without a padding token is given its end of text. `added_ids` are the image tokens
    and whatever else was not known before. `UserError` if the template cannot be trained with.
    """
    is_own = not chat_template and tokenizer.chat_template is not None
    tokenizer.chat_template = choose_template(tokenizer, chat_template)
    before = tokenizer.get_vocab()
    template = ChatTemplate.of(tokenizer)
    names = template.control_names()
    if is_own and template.ends_responses():
        # The model learned the others as plain text, such as the <|user|> of Zephyr.
        names = [name for name in names if name in before]
    needed = [IMAGE_START, IMAGE_END, *names]
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    # One that was no special token becomes one: else it would be found in the text of samples.
    added = [AddedToken(text, special=True, normalized=False) for text in needed
             if text not in special]  # fmt: skip
    tokenizer.add_tokens(added, special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    known = [text for text in END_TOKENS if text in vocabulary]
    own = [] if tokenizer.eos_token is None else [tokenizer.eos_token]
    ends = list(dict.fromkeys([*known, *own, ChatTemplate.of(tokenizer).end_of_response()]))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = ends[0]
    start_id, end_id = vocabulary[IMAGE_START], vocabulary[IMAGE_END]
    new = {vocabulary[text] for text in needed if text not in before}
    return {
        "image_start_id": start_id,
        "image_end_id": end_id,
        "pad_id": vocabulary[tokenizer.pad_token],
        "eos_ids": [vocabulary[text] for text in ends],
        "added_ids": sorted({start_id, end_id, *new}),
    }


def all_stops(eos_ids: list[int], folder: Path, tokenizer) -> list[int]:
    """These ids, and those of the tokenizer at which a model's folder says that it stops: in
    config.json or generation_config.json, as one id or several."""
    known, stops = set(tokenizer.get_vocab().values()), set(eos_ids)
    for path in (folder / "config.json", folder / "generation_config.json"):
        written = read_json(path).get("eos_token_id") if path.exists() else None
        ids = written if isinstance(written, list) else [] if written is None else [written]
        if not all(type(token_id) is int for token_id in ids):
            raise UserError(
                f"{path}: eos_token_id is {shown(written)}, expected a token id or a list of them"
            )
        stops |= known.intersection(ids)
    return sorted(stops)


def open_tokenizer(
    start: ModelConfig, read: Callable = read_tokenizer
) -> "tuple[PreTrainedTokenizerBase, TokenIds]":
    """The tokenizer that a run's samples are encoded with, and its ids. No weights are read.

    `read` opens the files: `read_saved_tokenizer` where nothing but answers is asked for.

    A MetaMorph folder goes on with the chat template that it was trained with, unless
    `model.chat_template` names another. Raises `UserError`.
    """
    folder = Path(start.folder or start.language)
    if start.folder:
        check_result(folder / "tokenizer.json", "model")
    tokenizer = read(folder)
    chosen = start.chat_template
    if start.folder and not chosen and "added_ids" not in read_json(folder / "config.json"):
        chosen = LLAMA3_NAME  # written before there was another chat format
    return tokenizer, add_image_tokens(tokenizer, chosen)
