"""Run files and command-line options, read into `RunConfig`, checked, and written back.

A run file is YAML with the nesting of `RunConfig`; every key may be overridden by its dotted name::

    parser = argparse.ArgumentParser(prog="metamorph train")
    parser.add_argument("config", metavar="CONFIG")
    add_config_arguments(parser)
    namespace, unknown = parser.parse_known_args(arguments)
    config = load_config(namespace.config, overrides_from_namespace(namespace, unknown))

    metamorph train configs/toy/align.yaml --training.steps 200 --data.kinds '{question: 1.0}'

Whatever does not fit raises `UserError` naming the file, the key, what it got and what it needs.
"""

import argparse
import dataclasses
import difflib
import functools
import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from metamorph.config.keys import RunConfig
from metamorph.config.options import NAME_LIST, NAMES, NUMBERS, SHARE_OR_PATH
from metamorph.config.strict_yaml import parse_text, read_yaml
from metamorph.disk import write_text
from metamorph.errors import LONGEST_VALUE, UserError, shown

KINDS: dict[Any, tuple[str, str]] = {  # type: its name in --help, and in words
    str: ("TEXT", "text (quote it in YAML)"),
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    bool: ("BOOL", "true or false"),
    NUMBERS: ("MAPPING", "a mapping of names to numbers, such as {question: 1.0}"),
    NAMES: ("MAPPING", "a mapping of names to names, such as {caption: TEXT}"),
    NAME_LIST: ("LIST", "a list of names, such as [one, two]"),
    SHARE_OR_PATH: ("SHARE|PATH", "a share above 0 and below 1, or a path"),
}
PARSED = (int, float, bool, NUMBERS, NAMES, NAME_LIST)  # types that an option's text is YAML of
# What an `option` may name as its users, such as stages; what a config has of it, in words and as
# they name it.
Use = tuple[str, str, set[str]]
LIMITS = {  # limit: in words, and what holds between a value and it
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML run file, then apply `overrides` {dotted key: value, or its text}."""
    return build_config(_flatten(read_yaml(Path(path)), str(path)), str(path), overrides)


def build_config(
    given: Mapping[str, Any], path: str, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """As `load_config`, of {dotted key: value}. `path`: where they stand, for messages."""
    values, origin = dict(given), dict.fromkeys(given, path)
    fields = dict(_leaves(RunConfig))
    for key, value in (overrides or {}).items():
        if key in fields and isinstance(value, str) and fields[key].type in PARSED:
            value = parse_text(value)
        values[key], origin[key] = value, "override"
    for key in values:
        if key not in fields:
            raise UserError(
                f"{origin[key]}: unknown key {shown(key)}; the nearest is '{nearest(key)}'"
            )
    for key, entry in fields.items():
        if key in values:
            values[key] = _convert(key, entry, values[key], origin[key])
        elif _default(entry) is MISSING:
            raise UserError(f"{path}: key '{key}' is missing; it needs {_needs(entry)}")
    return _build(RunConfig, values)


def read_section(config_class: type, values: Any, origin: str) -> Any:
    """A flat config dataclass from a mapping, checked as `load_config` checks. `origin`: where
    the mapping stands, for messages."""
    fields = dict(_leaves(config_class))
    values = {str(key): value for key, value in _mapping(values, "it", origin).items()}
    for key in values:
        if key not in fields:
            closest = difflib.get_close_matches(key[:LONGEST_VALUE], fields, n=1, cutoff=0)[0]
            raise UserError(f"{origin}: unknown key {shown(key)}; the nearest is '{closest}'")
    return config_class(**{k: _convert(k, fields[k], v, origin) for k, v in values.items()})


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML; `load_config` reads it back equal."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write `to_yaml(config)` to `path`, whole or not at all."""
    write_text(Path(path), to_yaml(config))


def iter_fields(config_class: type) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted key, type, default, help) of every key; a required key has default MISSING."""
    for key, entry in _leaves(config_class):
        yield key, entry.type, _default(entry), entry.metadata["help"]


def add_config_arguments(parser: argparse.ArgumentParser, *sections: str) -> None:
    """Add `--section.key VALUE` for every key of `RunConfig`, a group for each section; or for
    those of some `sections` alone, among which may be single keys by their dotted names.

    Abbreviations are switched off: a shortened key would change its meaning when keys are added.
    """
    parser.allow_abbrev = False
    groups: dict[str, Any] = {}
    for key, entry in _leaves(RunConfig):
        section = key.rpartition(".")[0] or "run"
        if not _is_among(key, sections):
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} options")
        default = _default(entry)
        shown = "required" if default is MISSING else f"default: {json.dumps(default)}"
        groups[section].add_argument(
            f"--{key}",
            dest=key,
            default=argparse.SUPPRESS,
            metavar="|".join(choices_of(entry)) or KINDS[entry.type][0],
            help=f"{entry.metadata['help']} ({shown})".replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if entry.type is bool else {}),
        )


def overrides_from_namespace(
    namespace: argparse.Namespace, unknown: Sequence[str] = (), *sections: str
) -> dict[str, str]:
    """The config options given on the command line; `unknown` is from `parse_known_args`.
    `sections`: as `add_config_arguments` had them."""
    given, keys = vars(namespace), [key for key, _ in _leaves(RunConfig)]
    for argument in unknown:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0]
            if name in keys:
                raise UserError(f"--{name}: only metamorph train uses it, leave it out here")
            closest = nearest(name, *sections)
            raise UserError(f"unknown option {shown(f'--{name}')}; the nearest is '--{closest}'")
    if unknown:
        raise UserError(f"unexpected argument {shown(unknown[0])}")
    return {key: given[key] for key in keys if key in given and _is_among(key, sections)}


def nearest(key: str, *among: str) -> str:
    """The key of `RunConfig`, or of some of its sections, that `key` most likely stands for."""
    keys = [name for name, _ in _leaves(RunConfig) if name != key]
    keys = [name for name in keys if _is_among(name, among)]
    sections = {name.partition(".")[0] for name in keys} - {key}
    leaf = key.rpartition(".")[2]
    misplaced = [name for name in keys if name.rpartition(".")[2] == leaf]
    candidates = misplaced or [*keys, *sorted(sections)]
    return difflib.get_close_matches(key, candidates, n=1, cutoff=0)[0]


def _is_among(key: str, sections: Sequence[str]) -> bool:
    """Whether a key is one of them or stands in one; where none are named, all are."""
    return not sections or key in sections or key.partition(".")[0] in sections


def _leaves(config_class: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(entry.type):
            yield from _leaves(entry.type, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry


def choices_of(entry: dataclasses.Field) -> tuple[str, ...]:
    """The values of a `Literal` key; empty for another."""
    return get_args(entry.type) if get_origin(entry.type) is Literal else ()


def iter_unused(config: Any, *uses: Use) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield each key of a config that differs from its default and that something does not use,
    with what that is in words, and what would use it."""
    for key, entry in _leaves(type(config)):
        for name, words, own in uses:
            users = entry.metadata.get(name)
            if users is not None and own.isdisjoint(users) and is_set(config, key):
                yield key, words, users


def is_set(config: Any, key: str) -> bool:
    """Whether a dotted key differs from its default."""
    return read_key(config, key) != _default(dict(_leaves(type(config)))[key])


def read_key(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def flat(config: RunConfig) -> dict[str, Any]:
    """{dotted key: value} of every key; JSON-able."""
    return {key: read_key(config, key) for key, _ in _leaves(RunConfig)}


def _default(entry: dataclasses.Field) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _flatten(mapping: Any, origin: str) -> dict[str, Any]:
    """Nested YAML as {dotted key: value}; an empty section is a section left at its defaults."""
    sections = {key.partition(".")[0] for key, _ in _leaves(RunConfig) if "." in key}
    values = {}
    for name, value in _mapping(mapping, "the run file", origin).items():
        if "." in str(name):
            raise UserError(
                f"{origin}: key {shown(name)} has a dot; in YAML, nest keys in sections"
            )
        if name in sections:
            section = _mapping(value, f"section '{name}'", origin)
            values |= {f"{name}.{key}": item for key, item in section.items()}
        else:
            values[str(name)] = value
    return values


def _mapping(value: Any, what: str, origin: str) -> dict:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{origin}: {what} got {shown(value)}; it needs 'key: value' lines")
    return value or {}


def _convert(key: str, entry: dataclasses.Field, value: Any, origin: str) -> Any:
    if value is None and entry.default is None:
        return None
    converted = _coerce(str if choices_of(entry) else entry.type, value)
    items = converted.values() if isinstance(converted, dict) else [converted]
    if converted is None or not all(_within(entry, item) for item in items):
        raise UserError(f"{origin}: key '{key}' got {shown(value)}; it needs {_needs(entry)}")
    return converted


def _coerce(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None where it is something else."""
    if kind in (NUMBERS, NAMES):
        if not isinstance(value, Mapping):
            return None
        _, item_kind = kind.__args__
        items = {name: _coerce(item_kind, item) for name, item in value.items()}
        named = all(isinstance(name, str) for name in items)
        return items if named and None not in items.values() else None
    if kind == NAME_LIST:
        named = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return list(value) if named else None
    if kind == SHARE_OR_PATH:
        share = _coerce(float, value)
        if share is None:
            return value if isinstance(value, str) else None
        return share if 0 < share < 1 else None
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is not float:
        return value if isinstance(value, kind) else None
    try:  # YAML 1.1 reads 1e-4, which lacks a point, as text.
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _within(entry: dataclasses.Field, value: Any) -> bool:
    limits = entry.metadata
    if choices := choices_of(entry):
        return value in choices
    if "names" in limits:
        return bool(value) and set(value) <= set(limits["names"])
    if "filled" in limits:
        return bool(value.strip())
    return all(ok(value, limits[name]) for name, (_, ok) in LIMITS.items() if name in limits)


def _needs(entry: dataclasses.Field) -> str:
    limits = entry.metadata
    if choices := choices_of(entry):
        return "one of " + ", ".join(choices)
    if names := limits.get("names"):
        return f"a list of some of {', '.join(names)}, such as [{', '.join(names[:2])}]"
    bounds = [f"{word} {limits[name]}" for name, (word, _) in LIMITS.items() if name in limits]
    filled = ["not empty"] if "filled" in limits else []
    return ", ".join([KINDS[entry.type][1], *filled, *bounds])


def _build(config_class: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {}
    for entry in dataclasses.fields(config_class):
        key = prefix + entry.name
        if dataclasses.is_dataclass(entry.type):
            arguments[entry.name] = _build(entry.type, values, f"{key}.")
        elif key in values:
            arguments[entry.name] = values[key]
    return config_class(**arguments)
