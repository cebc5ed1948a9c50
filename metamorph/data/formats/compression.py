"""Telling compressed files by their first bytes: records are read in place, from any offset."""

BEGINNINGS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"PK\x03\x04": "zip",
}


def compression_of(beginning: bytes) -> str:
    """What to do about a compressed file, by its first 8 bytes; empty if it is not one."""
    for signature, name in BEGINNINGS.items():
        if beginning.startswith(signature):
            return f"it is compressed with {name}, decompress it first"
    return ""
