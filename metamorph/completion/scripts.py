"""The scripts of the shells, files beside this one."""

from pathlib import Path


def script(shell: str) -> str:
    """What `shell` reads once, so that Tab asks `metamorph completion` from then on."""
    return Path(__file__).with_name(f"completion.{shell}").read_text()
