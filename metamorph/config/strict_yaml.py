"""YAML as run files need it: a key that stands twice is an error, errors name file and line, and no
file costs more than a moment: its size, its depth and what its aliases stand for have limits."""

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from metamorph.errors import UserError, shown

LARGEST_FILE = 2**17  # bytes
MOST_NODES = 20_000  # keys and values: a mixture of as many parts as fit one has fewer
DEEPEST = 32
LARGEST_CONTENT = 2**20  # characters, with every alias written out
LONGEST_NUMBER = 100  # characters
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML itself would silently keep the last."""

    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.depth > DEEPEST or self.nodes > MOST_NODES:
            problem = "nested too deeply" if self.depth > DEEPEST else "too many keys and values"
            raise ComposerError(None, None, problem, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_aliases(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                problem = f"key {shown(name)} stands twice"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in NUMBER_TAGS and len(node.value) > LONGEST_NUMBER:
                raise ValueError("Python needs the square of a number's length to read it")
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:  # 2020-13-45, !!bool maybe
            kind = node.tag.rpartition(":")[2]
            value = shown(node.value) if isinstance(node, yaml.ScalarNode) else "it"
            problem = f"{value} is not a valid {kind}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _check_aliases(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Characters and depth of a node with its aliases written out, each node looked at once.

    A few hundred bytes of aliases of aliases stand for gigabytes. Raises `ComposerError`.
    """
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise ComposerError(None, None, "an alias stands within itself", node.start_mark)
        return measured
    known[id(node)] = None  # until it is measured
    size, depth = 1, 1
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
    else:
        pairs = isinstance(node, yaml.MappingNode)
        for child in (each for pair in node.value for each in pair) if pairs else node.value:
            child_size, child_depth = _check_aliases(child, known)
            size, depth = size + child_size, max(depth, child_depth + 1)
    if size > LARGEST_CONTENT or depth > DEEPEST:
        problem = "its aliases stand for more than a run file can hold"
        raise ComposerError(None, None, problem, node.start_mark)
    known[id(node)] = size, depth
    return size, depth


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; whatever keeps it from being read is a `UserError`."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path}: it is larger than {LARGEST_FILE // 1024} KiB, no run file is")
        return yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path}: the file is not UTF-8 text") from error
        problem = getattr(error, "strerror", None) or error  # a NUL in the name has none
        raise UserError(f"{path}: cannot read the file: {problem}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{path}:{line} not valid YAML: {problem}") from error


def parse_text(text: str) -> Any:
    """Text from the command line as YAML reads it; what YAML cannot read stays text."""
    try:
        parsed = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    return text if parsed is None else parsed
