"""How many times over a JPEG is decoded: a progressive one gives its pixels in several scans.

A scan that changes nothing takes a dozen bytes and goes through the whole picture, so that a file
of a few kilobytes could hold a run for minutes.
"""

import re

MOST_SCANS = 100  # encoders write 20 or fewer
SCAN, END = 0xDA, 0xD9
# Not those within pixels (00, restarts), fillers (ff), or others without a length.
MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])", re.DOTALL)


def scans(content: bytes) -> int:
    """Scans of the first picture of a JPEG file; what follows it, such as a film, has none."""
    found, place = 0, 2
    while (marker := MARKER.search(content, place)) and marker[1][0] != END:
        found += marker[1][0] == SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return found
