"""The headers of a tar, walked without trust: every step leads forwards and stays in the file.

`tarfile` reads one header (`TarInfo.frombuf`), which it does well. It is not let walk: a size below
zero turned it back, a size beyond 64 bits ended the run, and a long name may claim all memory.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, Protocol

from metamorph.data.formats.compression import compression_of
from metamorph.data.images import LARGEST_FILE
from metamorph.errors import UserError, shown

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
DAMAGED, UNSAFE = "damaged tar", "unsafe tar member"  # causes of skips
LARGEST_EXTENSION = 2**20  # bytes of a long name, or of a member's pax fields
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
PAX, PAX_FOR_ALL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
SPARSE = tarfile.GNUTYPE_SPARSE
IS_EXTENDED, MORE_EXTENDED = 482, 504  # bytes of sparse headers that say whether one more follows
PAX_FIELD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")


@dataclass(frozen=True)
class Member:
    """A file in a tar. `problem`: why it must not be read, with the cause that it counts under;
    None if it may be."""

    name: str
    offset: int  # of its bytes
    size: int
    problem: tuple[str, str] | None = None


class Damage(Exception):
    """The tar cannot be read on from here."""


class Openable(Protocol):
    """A path, or what opens a file as a path does; its text names it."""

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


def members(path: Openable) -> Iterator[Member]:
    """The files of a tar in order, folders left out.

    Where the tar is damaged, a last member without a name says so as its problem; what stands
    before is good. Raises `UserError` for a file that is no uncompressed tar from its start.
    """
    try:
        with path.open("rb") as file:
            yield from _walk(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read: {error.strerror}") from error


def _walk(path: Openable, file: BinaryIO, end: int) -> Iterator[Member]:
    offset, shared = 0, {}
    while True:
        try:
            header, fields, start = _header(file, offset, end, shared)
        except Damage as damage:
            if offset == 0:
                raise UserError(_no_tar(path, file, damage)) from damage
            problem = f"the tar is damaged at byte {offset}, the rest is lost: {damage}"
            yield Member("", end, 0, (DAMAGED, problem))
            return
        if header is None:
            return
        # Links, devices and folders have no bytes, whatever size they claim; all other types do.
        has_none = header.type in tarfile.SUPPORTED_TYPES and not header.isreg()
        size = 0 if has_none else header.size
        shown_name = f"member {shown(header.name)}"
        if start + size > end:
            problem = f"{shown_name} claims {size} bytes, of which the tar holds {end - start}"
            yield Member(header.name, start, 0, (DAMAGED, f"{problem}; the rest is lost"))
            return
        if not header.isdir():
            problem = _problem(header, fields)
            problem = (UNSAFE, f"{shown_name} {problem}") if problem else None
            yield Member(header.name, start, size, problem)
        offset = start + -(-size // BLOCK) * BLOCK


def _header(
    file: BinaryIO, offset: int, end: int, shared: dict[str, str]
) -> tuple[tarfile.TarInfo | None, dict[str, str], int]:
    """The next file's header, its pax fields, and where its bytes start; no header at the end."""
    fields: dict[str, str] = {}
    name = ""
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if not block:
            raise Damage("it lacks its end, so it may have been cut off")
        if not block.strip(b"\0"):  # which marks the end
            return None, {}, offset
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, IndexError) as error:
            raise Damage(str(error)) from error
        offset += BLOCK
        if header.type == SPARSE:
            offset = _after_sparse(file, offset, block[IS_EXTENDED])
        kind = header.type
        if kind not in (LONG_NAME, LONG_LINK, *PAX, PAX_FOR_ALL):
            break
        if not 0 <= header.size <= min(LARGEST_EXTENSION, end - offset):
            raise Damage(f"a name or a list of fields claims {shown(header.size)} bytes")
        content = file.read(header.size)
        offset += -(-header.size // BLOCK) * BLOCK
        if kind == LONG_NAME:
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == PAX_FOR_ALL:
            shared.update(_pax_fields(content))
        elif kind in PAX:
            fields |= _pax_fields(content)
    fields = shared | fields
    header.name = fields.get("path", name or header.name)
    size = fields.get("size", str(header.size))
    if not re.fullmatch(r"[0-9]{1,18}", size):
        raise Damage(f"a file claims a size of {shown(size)}")
    header.size = int(size)
    return header, fields, offset


def _after_sparse(file: BinaryIO, offset: int, more: int) -> int:
    """Where the headers of a sparse file end, `offset` being the end of the first."""
    while more:
        file.seek(offset)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise Damage("it ends inside a header")
        offset, more = offset + BLOCK, block[MORE_EXTENDED]
    return offset


def _pax_fields(content: bytes) -> dict[str, str]:
    """`length key=value` lines; what comes after a broken one is damage."""
    fields, place = {}, 0
    content = content.rstrip(b"\0")
    while place < len(content):
        found = PAX_FIELD.match(content, place)
        if found is None:
            raise Damage("its pax fields are broken")
        length, name = int(found[1]), found[2].decode("utf-8", "replace")
        value = content[found.end() : place + length]
        if not value.endswith(b"\n") or place + length > len(content):
            raise Damage("its pax fields are broken")
        fields[name] = value[:-1].decode("utf-8", "surrogateescape")
        place += length
    return fields


def _problem(header: tarfile.TarInfo, fields: dict[str, str]) -> str:
    path = PurePosixPath(header.name)
    if not header.isreg():
        return "is not a plain file"
    if path.is_absolute() or ".." in path.parts:
        return "leaves the tar"
    if header.size > LARGEST_FILE:
        return "is larger than 1 GiB"
    if header.type == SPARSE or any(key.startswith("GNU.sparse") for key in fields):
        return "is stored with holes (sparse), which cannot be read in place"
    return ""


def _no_tar(path: Openable, file: BinaryIO, damage: Damage) -> str:
    file.seek(0)
    beginning = file.read(8)
    problem = compression_of(beginning) or (str(damage) if beginning else "it is empty")
    return f"data.path: {path} is not an uncompressed tar: {problem}"
