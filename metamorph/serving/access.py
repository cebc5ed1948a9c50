"""Who may use a server: this machine alone unless told, and whoever has the token."""

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from metamorph.errors import UserError
from metamorph.serving.guard import LOOPBACK_NAMES, Door

VARIABLE = "METAMORPH_TOKEN"
LEAST_LETTERS = 16  # of a token: shorter ones are guessed


def door_of(
    host: str,
    *,
    token_file: Path | None = None,
    without_token: bool = False,
    names: Sequence[str] = (),
) -> Door:
    """Of a server that listens on `host`. Raises `UserError` for one that anybody could use who
    reaches this machine, unless that is said by `without_token`.

    The token stands in a file or in the environment, never in the command, which every user of the
    machine can read. A server of this machine alone answers by its names only: else a page from
    elsewhere could reach it under a name of its own (DNS rebinding).
    """
    token = _token(token_file)
    if token and without_token:
        where = f"--token-file {token_file}" if token_file else f"the environment's {VARIABLE}"
        raise UserError(f"--no-token: there is a token, from {where}; expected one or the other")
    local = is_loopback(host)
    if not (local or token or without_token):
        raise UserError(
            f"--host {host}: other machines may reach it; give a token by --token-file FILE or in "
            f"{VARIABLE}, or say --no-token"
        )
    known = {name.lower() for name in names}
    if local:
        known |= LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()}
    return Door(token, frozenset(known))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _token(file: Path | None) -> str:
    """The token, or nothing."""
    if file is None:
        where, token = VARIABLE, os.environ.get(VARIABLE, "")
        if not token:
            return ""
    else:
        where = f"--token-file {file}"
        try:
            token = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII"
            raise UserError(f"{where}: cannot be read: {reason}") from error
    if len(token) < LEAST_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{where}: expected one token of at least {LEAST_LETTERS} letters without blanks"
        )
    return token
