"""The tokenizer of a model folder for answering, by the tokenizers package alone.

Importing transformers takes about half as long as importing torch, and a question needs nothing of
it: in a folder that a tokenizer of transformers was saved to, everything is in `tokenizer.json`
and three small settings. Where a folder says more than that, transformers reads it as ever.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers import AddedToken, Tokenizer

from metamorph.errors import UserError, in_words
from metamorph.folders import check_file
from metamorph.model.weights import read_json, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
# Settings that change neither ids nor text, and what they may be. With `tokenizer.json` beside
# them, transformers takes no notice of the two that would add tokens.
WITHOUT_EFFECT = {
    "add_bos_token": (bool, type(None)),
    "add_eos_token": (bool, type(None)),
    "add_prefix_space": (bool, type(None)),
    "backend": (str,),
    "clean_up_tokenization_spaces": (bool,),  # asked for in each call
    "errors": (str,),
    "is_local": (bool,),
    "legacy": (bool, type(None)),
    "local_files_only": (bool,),
    "model_input_names": (list,),
    "model_max_length": (int, float, type(None)),
    "name_or_path": (str,),
    "sp_model_kwargs": (dict,),
    "spaces_between_special_tokens": (bool,),
    "split_special_tokens": (bool,),  # asked for in each call
    "tokenizer_class": (str, type(None)),
    "use_default_system_prompt": (bool,),
}
# Files beside `tokenizer.json` that transformers would add tokens or templates of.
MORE = ("added_tokens.json", "special_tokens_map.json", "additional_chat_templates")


class SavedTokenizer:
    """What encodes and decodes answers, under the names that transformers has for it."""

    def __init__(self, core: Tokenizer, named: dict[str, str], chat_template: str | None):
        self.core = core
        self.special_tokens_map = named  # bos_token and its like
        self.chat_template = chat_template

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.special_tokens_map.get("pad_token")

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        self.special_tokens_map["pad_token"] = token

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.core.get_added_tokens_decoder()

    def get_vocab(self) -> dict[str, int]:
        return self.core.get_vocab(with_added_tokens=True)

    def add_tokens(self, tokens: list[AddedToken], special_tokens: bool) -> int:
        add = self.core.add_special_tokens if special_tokens else self.core.add_tokens
        return add(tokens)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        return self.core.id_to_token(token_id)

    def encode(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool
    ) -> list[int]:
        self.core.encode_special_tokens = split_special_tokens
        return self.core.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: Literal[False],
    ) -> str:
        return self.core.decode(token_ids, skip_special_tokens=skip_special_tokens)


def read_saved_tokenizer(folder: str | Path) -> "SavedTokenizer | PreTrainedTokenizerFast":
    """As `read_tokenizer`, without transformers where its files say what `SavedTokenizer` knows.

    The same ids and texts either way. Raises `UserError`.
    """
    folder = Path(folder)
    path = check_file(folder / "tokenizer.json", "the tokenizer of a model folder")
    settings_path = folder / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.exists() else {}
    if any((folder / name).exists() for name in MORE):
        return read_tokenizer(folder)
    try:
        core = Tokenizer.from_file(str(path))
        core.encode("a", add_special_tokens=False)  # some faults show only when it is used
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise UserError(f"{path}: not readable as a tokenizer: {in_words(error)}") from error
    if not _is_plain(core, settings):
        return read_tokenizer(folder)
    template = settings.get("chat_template")
    template_path = folder / "chat_template.jinja"
    if template_path.exists():
        try:
            template = template_path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{template_path}: not readable as text: {in_words(error)}") from error
    named = {name: settings[name] for name in NAMED if settings.get(name) is not None}
    return SavedTokenizer(core, named, template)


def _is_plain(core: Tokenizer, settings: dict) -> bool:
    """Whether transformers would change nothing of `core`: all special tokens are in it already,
    and no setting is of a kind that is not known here."""
    if core.padding is not None or core.truncation is not None:
        return False
    added = core.get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special}
    for name, value in settings.items():
        if name in WITHOUT_EFFECT:
            known = isinstance(value, WITHOUT_EFFECT[name])
        elif name in NAMED:
            known = value is None or (isinstance(value, str) and value in special)
        elif name == "extra_special_tokens":
            known = isinstance(value, list) and all(
                isinstance(token, str) and token in special for token in value
            )
        else:
            known = name == "chat_template" and isinstance(value, str)
        if not known:
            return False
    return True
