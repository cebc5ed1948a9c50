"""Rows of data as a person reads them."""

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.describe import describe_row
from metamorph.data.packing import pack_row


def test_what_is_learned_is_marked_and_no_sample_speaks_to_the_terminal(encoder):
    sample = Sample("a\x1b[2J", (Turn(USER, "Hi\n\x1b[31m"), Turn(ASSISTANT, "Hello.")))
    row = pack_row([encoder.encode(sample)], 64, pad_id=0)
    text = describe_row("rows", row, encoder.tokenizer)
    assert "document 1: a\\x1b[2J" in text and "Hi\n" in text and "\\x1b[31m" in text
    assert "\x1b" not in text and "«Hello.<|eot_id|>»" in text
