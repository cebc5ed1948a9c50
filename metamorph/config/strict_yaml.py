"""YAML as run files need it: a key that stands twice is an error, and errors name file and line."""

from pathlib import Path
from typing import Any

import yaml

from metamorph.errors import UserError


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML itself would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                problem = f"key '{name}' stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:  # 2020-13-45, !!bool maybe
            kind = node.tag.rpartition(":")[2]
            shown = repr(node.value[:80]) if isinstance(node, yaml.ScalarNode) else "it"
            problem = f"{shown} is not a valid {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; whatever keeps it from being read is a `UserError`."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8 text") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{path}:{line} not valid YAML: {problem}") from error


def parse_text(text: str) -> Any:
    """Text from the command line as YAML reads it; what YAML cannot read stays text."""
    try:
        parsed = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return text
    return text if parsed is None else parsed
