"""How many rows of logits, and of their gradient, exist at a time."""

# In float32 256 MiB of logits and, beside them in Triton, 512 MiB of their gradient. A chunk of
# gradients reads and writes the weight's float32 gradient once, at the ends of tiles, where no
# arithmetic hides it; a chunk of logits reads the weight once, all along its products. So gradients
# come in longer chunks: at 8192 rows, 4096 wide, and 128,258 classes in bfloat16, 4 of 2048 rows
# beside 16 of 512 move 14.7 GB of sums and 16.8 GB of weight. One length for both in the same
# memory, 8 of 1024 rows, would move 31.5 and 8.4.
LOGITS_AT_ONCE = 2**26
GRADIENT_BYTES_AT_ONCE = 2**29
ROWS_OF_A_TILE = 128  # of a matrix product: chunks of whole tiles waste nothing


def logit_chunks(rows: int, classes: int) -> list[slice]:
    """Rows whose logits exist at once."""
    return _chunks(rows, LOGITS_AT_ONCE // classes)


def gradient_chunks(rows: int, classes: int, element_size: int) -> list[slice]:
    """Rows whose gradient of logits, of `element_size` bytes each, exists at once."""
    return _chunks(rows, GRADIENT_BYTES_AT_ONCE // (classes * element_size))


def _chunks(rows: int, most: int) -> list[slice]:
    """All rows, so many at once, or one where that is 0; whole tiles where there are several."""
    most -= most % ROWS_OF_A_TILE if most > ROWS_OF_A_TILE else 0
    most = max(most, 1)
    return [slice(first, min(first + most, rows)) for first in range(0, rows, most)]
