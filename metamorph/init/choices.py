"""Keys of a run file with what they are for, and the file that they make."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from metamorph.config import RunConfig
from metamorph.config.reading import build_config
from metamorph.errors import printable

WIDTH = 100  # characters of a line
END_OF_SCALAR = "...\n"  # which YAML puts behind a value that stands alone


@dataclass(frozen=True)
class Choice:
    """A dotted key, its value, and in a few words why it has that."""

    key: str
    value: Any
    why: str


def config_of(choices: Sequence[Choice]) -> RunConfig:
    """The run that they make. Raises `UserError`."""
    return build_config({choice.key: choice.value for choice in choices}, "metamorph init")


def commented(choices: Sequence[Choice], head: Sequence[str]) -> str:
    """The choices as YAML, each under a comment that says why. `head`: lines before them."""
    lines = [f"# {line}".rstrip() for line in head]
    section = None
    for choice in choices:
        own, _, name = choice.key.rpartition(".")
        if own != section:
            lines.append("")
        if own and own != section:
            lines.append(f"{own}:")
        section = own
        indent = "  " if own else ""
        why = textwrap.wrap(printable(choice.why), WIDTH - len(indent) - 2)
        lines += [f"{indent}# {line}" for line in why]
        lines.append(indent + _line(name, choice.value))
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    """`name: value` on one line."""
    written = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )
    return f"{name}: {written.removesuffix(END_OF_SCALAR).strip()}"
