"""What may come next on a command line, for a shell that asks when Tab is pressed."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from metamorph.config import RunConfig
from metamorph.config.reading import iter_fields
from metamorph.config.shipped import configs_folder

RUN_FILES = ("config", "data")  # names of positional arguments that take a run file
VALUES = {  # key of a run: those that it takes, where they are a few
    key: ("true", "false") if kind is bool else get_args(kind)
    for key, kind, _, _ in iter_fields(RunConfig)
    if kind is bool or get_origin(kind) is Literal
}


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What the last of `words` may become: verbs, options, values of options, run files.

    `words` follow the program's name, up to the cursor; the last one is often empty. Nothing is
    found where a path or free text is expected: there shells offer files.
    """
    before, current = _split(words)
    if not before:
        return _beginning(current, [*_verbs(parser), *_options(parser)])
    verb = _verbs(parser).get(before[0])
    if verb is None:
        return []
    option, equals, start = current.partition("=")
    if equals and option in verb._option_string_actions:
        values = _values(verb._option_string_actions[option], start)
        return [f"{option}={value}" for value in _beginning(start, values)]
    if current.startswith("-"):
        return _beginning(current, _options(verb))
    expected = _expected(verb, before[1:])
    return [] if expected is None else _beginning(current, _values(expected, current))


def _split(words: Sequence[str]) -> tuple[list[str], str]:
    """The words before the cursor, and the one at it. bash makes three of `--key=value`."""
    kept = [word for word in words if word != "="]
    if not words or words[-1] == "=":
        kept.append("")
    return kept[:-1], kept[-1]


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    [verbs] = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return verbs.choices


def _options(parser: argparse.ArgumentParser) -> list[str]:
    shown = [each for each in parser._actions if each.help != argparse.SUPPRESS]
    return [name for each in shown for name in each.option_strings]


def _expected(verb: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    """The argument that the next word is a value of: of an option that still wants one, or the
    next positional one."""
    positional = [each for each in verb._actions if not each.option_strings]
    option, wanted = None, 0.0
    for word in before:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            option = verb._option_string_actions.get(name)
            wanted = 0 if option is None or equals else _most_values(option)
        elif wanted:
            wanted -= 1
        elif positional and _most_values(positional[0]) == 1:
            del positional[0]
    if wanted:
        return option
    return positional[0] if positional else None


def _most_values(argument: argparse.Action) -> float:
    if argument.nargs in ("*", "+"):
        return float("inf")
    return argument.nargs if isinstance(argument.nargs, int) else 1


def _values(argument: argparse.Action, start: str) -> list[str]:
    if argument.dest in RUN_FILES and not argument.option_strings:
        return _run_files(start)
    return list(map(str, argument.choices or VALUES.get(argument.dest, ())))


def _run_files(start: str) -> list[str]:
    """Those beside what was typed so far, and those that come with the package."""
    here = Path(start).parent if not start.endswith("/") else Path(start)
    shipped = configs_folder()
    names = {f"configs/{path.relative_to(shipped)}" for path in shipped.rglob("*.yaml")}
    return sorted(names | {str(path) for path in here.glob("*.yaml")})


def _beginning(start: str, found: Sequence[str]) -> list[str]:
    return [each for each in found if each.startswith(start)]
