"""How good decoders are, in numbers and in sheets of pictures."""
