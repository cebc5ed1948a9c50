"""Pictures as sixels: the graphics of DEC's terminals, which xterm, foot and others show.

A picture is written in bands of six rows. In a band each colour is written on its own: a character
a column, 63 plus six bits, the lowest for the uppermost row. `!n` before a character repeats it,
`$` goes back to the start of the band, `-` to the next one.
"""

import numpy as np
from PIL import Image

COLOURS = 256
BAND = 6  # rows
FIRST = 63  # the character of no pixel
LEAST_REPEATED = 4  # `!3?` is no shorter than `???`
START, END = "\x1bP0;1q", "\x1b\\"  # pixels that are not set keep what is there


def sixels(picture: Image.Image) -> str:
    """The escape sequence that shows an RGB picture at the cursor, in up to 256 of its colours."""
    quantized = picture.convert("RGB").quantize(COLOURS)
    indices = np.asarray(quantized)  # [height, width] of palette entries
    palette = np.asarray(quantized.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    height, width = indices.shape
    used = np.unique(indices)
    percent = (palette[used] * 100 + 127) // 255  # what sixels count colours in
    written = [f'{START}"1;1;{width};{height}']
    written += [f"#{at};2;{r};{g};{b}" for at, (r, g, b) in zip(used, percent, strict=True)]
    written += ["-".join(_band(indices[top : top + BAND]) for top in range(0, height, BAND)), END]
    return "".join(written)


def _band(indices: np.ndarray) -> str:
    """Up to six rows [rows, width]."""
    weights = 1 << np.arange(len(indices))[:, None]
    return "$".join(
        f"#{colour}{_repeated(FIRST + ((indices == colour) * weights).sum(0))}"
        for colour in np.unique(indices)
    )


def _repeated(codes: np.ndarray) -> str:
    """Character codes [width] with runs of the same one told by their length."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    lengths = np.diff(starts, append=len(codes))
    return "".join(
        chr(code) * length if length < LEAST_REPEATED else f"!{length}{chr(code)}"
        for code, length in zip(codes[starts].tolist(), lengths.tolist(), strict=True)
    )
