"""Text of a model as a terminal may get it."""

import re

# What a terminal obeys or that hides how a line reads: control characters but for tabs and line
# ends, other line separators, what turns the direction of writing, and halves of characters.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with such characters written out: `\\x1b` for an escape. Any piece of a text may be
    given on its own."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
