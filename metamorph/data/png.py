"""PNG files reduced to what makes their picture, before anything of them is decompressed.

A file may hold megabytes of compressed text, colour profiles or further frames, which cost memory
and can be broken where the picture is not.
"""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"tRNS", b"eXIf")  # of the chunks that a reader may leave out
GREY, COLOUR = 0, 2  # colour types that have one transparent colour


def picture_chunks(content: bytes) -> bytes:
    """The file without the chunks that its picture does not need. What is no PNG comes back as it
    is, and so does what follows a chunk that the file does not hold whole."""
    if not content.startswith(SIGNATURE):
        return content
    whole = memoryview(content)
    kept: list[bytes | memoryview] = [whole[: len(SIGNATURE)]]
    start, kind = len(SIGNATURE), b""
    while start + 12 <= len(content) and kind != b"IEND":
        length = int.from_bytes(whole[start : start + 4], "big")
        kind, end = bytes(whole[start + 4 : start + 8]), start + 12 + length
        if end > len(content):
            break
        is_needed = not kind[0] & 0x20  # a capital: no reader may leave it out
        if kind == b"tRNS":
            kept.append(_transparent_colour(content, whole[start:end]))
        elif is_needed or kind in KEPT:
            kept.append(whole[start:end])
        start = end
    return b"".join((*kept, whole[start:]))


def _transparent_colour(content: bytes, chunk: memoryview) -> bytes | memoryview:
    """A tRNS chunk in the eight bits to which Pillow brings all but grey of 16 and of 1 bit."""
    depth, colour_type = content[24], content[25]  # of the header, which comes first
    data = bytes(chunk[8:-4])
    if colour_type == GREY and depth in (2, 4) and len(data) >= 2:
        level = int.from_bytes(data[:2], "big") & (2**depth - 1)
        data = struct.pack(">H", level * 255 // (2**depth - 1))
    elif colour_type == COLOUR and depth == 16 and len(data) >= 6:
        data = bytes((0, data[0], 0, data[2], 0, data[4]))
    else:
        return chunk
    checksum = zlib.crc32(b"tRNS" + data)
    return struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", checksum)
