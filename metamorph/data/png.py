"""PNG files reduced to what makes their picture, before anything of them is decompressed.

A file may hold megabytes of compressed text, colour profiles or further frames, which cost memory
and can be broken where the picture is not.
"""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ANCILLARY = 0x20  # of a chunk's first letter: a small one, so readers may leave it out
KEPT = (b"tRNS", b"eXIf")  # of the chunks that a reader may leave out, where they are sound
GREY, COLOUR = 0, 2  # colour types that have one transparent colour
COLOUR_BYTES = {GREY: 2, COLOUR: 6}


def chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk of a PNG up to IEND. The end of the last may lie beyond
    that of a file that was cut."""
    start, kind = len(SIGNATURE), b""
    while start + 12 <= len(content) and kind != b"IEND":
        length = int.from_bytes(content[start : start + 4], "big")
        kind, end = content[start + 4 : start + 8], start + 12 + length
        yield kind, start, end
        start = end


def is_sound(chunk: bytes | memoryview) -> bool:
    """Whether a chunk, all of it, has the checksum that it says."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def picture_chunks(content: bytes) -> bytes:
    """The file without the chunks that its picture does not need. What is no PNG comes back as it
    is, and so does what follows a chunk of the picture that the file does not hold whole."""
    if not content.startswith(SIGNATURE):
        return content
    whole = memoryview(content)
    rest = len(SIGNATURE)
    kept: list[bytes | memoryview] = [whole[:rest]]
    for kind, start, end in chunks(content):
        if end > len(content):
            if kind[0] & ANCILLARY:  # what was cut off is no part of the picture
                rest = len(content)
            break
        chunk = whole[start:end]
        if not kind[0] & ANCILLARY:
            kept.append(chunk)
        elif kind in KEPT and is_sound(chunk):
            kept.append(_transparency(content, chunk) if kind == b"tRNS" else chunk)
        rest = end
    return b"".join((*kept, whole[rest:]))


def _transparency(content: bytes, chunk: memoryview) -> bytes | memoryview:
    """A tRNS chunk as Pillow takes it, nothing of one that is too short: its one colour in eight
    bits, to which Pillow brings pixels of all depths but grey of 16 bits and of one."""
    depth, colour_type = content[24:26]  # of the header, which comes first
    data = bytes(chunk[8:-4])
    if len(data) < COLOUR_BYTES.get(colour_type, 0):
        return b""
    if colour_type == GREY and depth in (2, 4):
        level = int.from_bytes(data[:2], "big") & (2**depth - 1)
        data = struct.pack(">H", level * 255 // (2**depth - 1))
    elif colour_type == COLOUR and depth == 16:
        data = bytes((0, data[0], 0, data[2], 0, data[4]))
    else:
        return chunk
    checksum = zlib.crc32(b"tRNS" + data)
    return struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", checksum)
