"""Addresses of tars: which are read, which files they stand for, and what tells a file's versions.

Only what a run file names is fetched. The protocols are those of fsspec, of which the stores' own
packages are needed: s3fs, gcsfs, aiohttp. What would wrap one protocol in another is refused.
"""

import re
from dataclasses import dataclass
from typing import Any

from metamorph.data.remote.downloads import patiently
from metamorph.errors import UserError, in_words, shown

PROTOCOLS = ("https", "http", "s3", "gs", "hf", "az", "abfs", "file", "memory")
WITHOUT_LISTING = ("https", "http")
MOST_TARS = 100_000
NUMBERS = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")  # as in pairs-{000..099}.tar
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True)
class RemoteFile:
    """`size` in bytes, None where the store does not say it; `version`: what it is told by."""

    address: str
    size: int | None
    version: str


def is_address(path: str) -> bool:
    """Whether a path names something elsewhere."""
    return "://" in path


def tars_at(address: str) -> list[RemoteFile]:
    """The tars that `data.path` stands for, in order: one, numbers in braces, those of a folder, or
    a pattern.

    Raises `UserError` if there are none, `Halted` if the other side does not answer.
    """
    protocol = address.partition("://")[0]
    if protocol not in PROTOCOLS or "::" in address:
        raise UserError(
            f"data.path: {address}: expected an address that begins with one of "
            f"{', '.join(f'{name}://' for name in PROTOCOLS[:-1])}"
        )
    found = [file for one in _written_out(address) for file in _files(one, protocol)]
    if not found:
        raise UserError(f"data.path: {address}: there is no such tar")
    return found


def _written_out(address: str) -> list[str]:
    """An address for each of the numbers in its braces."""
    braces = NUMBERS.search(address)
    if braces is None:
        return [address]
    first, last = int(braces[1]), int(braces[2])
    if not first <= last < first + MOST_TARS:
        raise UserError(f"data.path: {address}: expected at most {MOST_TARS} numbers, in order")
    before, after = address[: braces.start()], address[braces.end() :]
    return [f"{before}{n:0{len(braces[1])}}{after}" for n in range(first, last + 1)]


def _files(address: str, protocol: str) -> list[RemoteFile]:
    filesystem, path = open_filesystem(address)
    try:
        if path.lower().endswith(".tar") and not any(sign in path for sign in "*?["):
            details = [patiently(address, lambda: filesystem.info(path))]
        elif protocol in WITHOUT_LISTING:
            raise UserError(
                f"data.path: {address}: a web server lists no files; name one tar, or numbers as "
                f"in pairs-{{000..099}}.tar"
            )
        else:
            pattern = path if any(sign in path for sign in "*?[") else f"{path.rstrip('/')}/*.tar"
            listed = patiently(address, lambda: filesystem.glob(pattern, detail=True))
            details = [listed[name] for name in sorted(listed) if name.lower().endswith(".tar")]
    except FileNotFoundError as error:
        raise UserError(f"data.path: {address}: there is no such file") from error
    except PermissionError as error:
        raise UserError(f"data.path: {address}: access is denied: {in_words(error)}") from error
    return [_described(filesystem, detail) for detail in details]


def _described(filesystem: Any, detail: dict) -> RemoteFile:
    size = detail.get("size")
    version = next((str(detail[name]) for name in VERSIONS if detail.get(name)), "")
    address = filesystem.unstrip_protocol(detail["name"])
    return RemoteFile(address, size if type(size) is int else None, version)


def open_filesystem(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path there. Raises `UserError` for one whose
    package is not installed."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"data.path: {shown(address)}: {in_words(error)}") from error
