"""What makes a small JPEG slow to read. A scan that changes nothing takes a dozen bytes and goes
through the whole picture; bytes that only fill the space before a marker are read one by one.
"""

import re

MOST_SCANS = 100  # encoders write 20 or fewer
MOST_FILL = 2**18  # bytes; encoders write none
SCAN, END = 0xDA, 0xD9
# Not those within pixels (00, restarts), fillers (ff), or others without a length.
MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])", re.DOTALL)


def too_slow(content: bytes) -> str | None:
    """Why a JPEG file is not decoded, if reading it could take many times what its size says."""
    if (times := scans(content)) > MOST_SCANS:
        return f"has {times} scans, expected at most {MOST_SCANS}"
    if (fill := 2 * content.count(b"\xff\xff", 0, content.rfind(b"\xff\xda"))) > MOST_FILL:
        return f"has {fill} bytes of fill before its pixels, expected at most {MOST_FILL}"
    return None


def scans(content: bytes) -> int:
    """Scans of the first picture of a JPEG file; what follows it, such as a film, has none."""
    found, place = 0, 2
    while (marker := MARKER.search(content, place)) and marker[1][0] != END:
        found += marker[1][0] == SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return found
