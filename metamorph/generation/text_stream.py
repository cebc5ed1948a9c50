"""Text out of token ids as they come: whole characters, and nothing from a stop string on."""

import re
from collections.abc import Sequence

# The bytes of what its vocabulary lacks, in a tokenizer that falls back to bytes.
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Tokens in front of new ones, with which these are decoded. Decoders treat the first token in a way
# of its own, and the last character may have come in four tokens, a byte of UTF-8 each.
CONTEXT = 4
LONGEST_WINDOW = 32  # tokens that are decoded again before their number is cut to CONTEXT
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer, piece by piece.

    The pieces of a stretch, joined, are what `tokenizer` decodes of all its ids at once without
    special tokens, cut before the place where a stop string first begins. Each token is decoded
    with a few before it, not with all.

    Attributes:
        stopped: a stop string was found: what stands before it was returned, nothing follows.
    """

    def __init__(self, tokenizer, stop: tuple[str, ...] = ()):
        """`tokenizer` is one of transformers; `stop` holds strings that are not empty."""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._special = {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._begin()

    def _begin(self) -> None:
        self._window: list[int] = []  # the last tokens of the stretch, but for
        self._bytes: list[int] = []  # bytes after them, of which no other token is the end yet
        self._taken = 0  # characters of the window's text that are returned or held
        self._held = ""  # decoded text in which a stop string may have begun

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is sure after these tokens too.

        A character that is not finished is held back, and text that may become a stop string.
        """
        if self.stopped:
            return ""
        for token_id in map(int, token_ids):
            token = self._tokenizer.convert_ids_to_tokens(token_id)
            if token is None or token_id in self._special:
                continue
            # Bytes that a vocabulary falls back to are text only where all in a row are valid
            # UTF-8: what the first is may depend on the last.
            self._bytes.append(token_id)
            if not BYTE.fullmatch(token):
                self._window += self._bytes
                self._bytes = []
        text = self._decode(self._window)
        settled = text.removesuffix(UNFINISHED)
        self._held += settled[self._taken :]
        self._taken = len(settled)
        if len(self._window) > LONGEST_WINDOW:
            self._window = self._window[-CONTEXT:]
            self._taken = len(self._decode(self._window).removesuffix(UNFINISHED))
        return self._release(at_end=False)

    def flush(self) -> str:
        """The rest, where a stretch of text ends: an image begins, or the answer ends.

        An unfinished character becomes U+FFFD. Tokens after it begin another stretch, and no stop
        string reaches from one into the other.
        """
        if self.stopped:
            return ""
        self._held += self._decode(self._window + self._bytes)[self._taken :]
        rest = self._release(at_end=True)
        self._begin()
        return rest

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _release(self, at_end: bool) -> str:
        """Takes from the held text what no stop string begins in, or can begin in later."""
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        end = first_found = min(found, default=len(self._held))
        if not at_end:
            end = min([first_found, *(_begins_at(stop, self._held) for stop in self._stop)])
        self.stopped = bool(found) and end == first_found
        released, self._held = self._held[:end], self._held[end:]
        return released


def _begins_at(stop: str, text: str) -> int:
    """Where the longest end of `text` lies that is the beginning of `stop`, but not all of it."""
    first = max(0, len(text) - len(stop) + 1)
    return next((at for at in range(first, len(text)) if stop.startswith(text[at:])), len(text))
