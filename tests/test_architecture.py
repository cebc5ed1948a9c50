"""docs/architecture.md is true, imports go the way that it says, and files stay short."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import metamorph_kernels

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text()
PACKAGES = {
    "metamorph": ROOT / "metamorph",
    "metamorph_kernels": ROOT / "kernels/metamorph_kernels",
    "bench": ROOT / "bench",
}
LONGEST_FILE = 320  # lines
MOST_TRAINING_FILES = 20

# By dotted name, `metamorph.data` for metamorph/data/__init__.py.
MODULES = {
    ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in PACKAGES.values()
    for path in folder.rglob("*.py")
}


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(module: str) -> dict[str, int]:
    """Our modules that a module imports, wherever in it, each with a line that does so."""
    found = {}
    for node in ast.walk(syntax(MODULES[module])):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            # `from a.b import c` imports the module a.b.c if there is one, else a name of a.b.
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [member if member in MODULES else node.module for member in members]
        found |= {name: node.lineno for name in names if name in MODULES and name != module}
    return found


@cache
def imports() -> dict[str, dict[str, int]]:
    """Of every module; not before a test asks, for each process that runs tests reads this file."""
    return {module: imported(module) for module in MODULES}


def room(module: str) -> str:
    """`metamorph.data` of metamorph.data.toy.tasks."""
    return ".".join(module.split(".")[:2])


def rooms() -> dict[str, set[str]]:
    """The rooms that a room imports from."""
    found = {}
    for module, others in imports().items():
        found.setdefault(room(module), set()).update(
            room(other) for other in others if room(other) != room(module)
        )
    return found


def circle(imports: dict) -> list[str]:
    """The modules of a circle of imports, none if there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def names_in(path: Path) -> set[str]:
    """What a file defines: `function`, `Class`, `Class.method`."""
    found = set()
    for node in syntax(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef)}
    return found


def order_of_imports() -> list[list[str]]:
    """The block of the page that lists rooms and modules of metamorph, the lowest first."""
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    return [line.split() for line in block.splitlines()]


STATIONS = re.findall(r"^\| `([\w/]+\.py)` \| ([^|]+) \|", PAGE, re.MULTILINE)


def paths_of(page: str) -> list[str]:
    """Files and folders that a page names, but for those that its reader will write."""
    paths = re.findall(r"`([\w./-]+(?:\.(?:py|yaml|json|h|cpp|md)|/))`", page)
    return [path for path in paths if "NAME" not in path]


def test_every_path_of_the_page_exists():
    paths = paths_of(PAGE)
    assert len(paths) > 40
    for path in paths:
        places = (ROOT, ROOT / "metamorph", ROOT / "metamorph/data/families", ROOT / "bench")
        assert any((place / path).exists() for place in places), path


def test_every_path_that_a_contributor_is_sent_to_exists():
    paths = paths_of((ROOT / "CONTRIBUTING.md").read_text())
    assert len(paths) > 15
    for path in paths:
        assert path == "utils.py" or (ROOT / path).exists(), path


@pytest.mark.parametrize(("path", "names"), STATIONS, ids=[path for path, _ in STATIONS])
def test_every_station_defines_what_the_page_says(path, names):
    named = set(re.findall(r"`([\w.]+)`", names))
    assert named and named <= names_in(ROOT / path)


def test_both_journeys_are_there():
    stations = {path for path, _ in STATIONS}
    assert {"metamorph/training/loop.py", "metamorph/decoder/pipeline.py"} <= stations


def test_every_room_of_the_tree_is_on_the_page():
    for folder in (*PACKAGES["metamorph"].iterdir(), *PACKAGES["bench"].iterdir()):
        if any(folder.glob("*.py")):  # `bench/out/` holds results of whoever ran it
            assert f"`{folder.name}/`" in PAGE, folder


def test_no_circle_of_imports():
    assert not circle(imports())
    assert not circle(rooms())


def test_a_circle_would_be_seen():
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]})
    assert not circle({"a": ["b", "c"], "b": ["c"]})


def test_metamorph_imports_in_the_order_of_the_page():
    height = {name: at for at, line in enumerate(order_of_imports()) for name in line}
    for module, others in imports().items():
        package, _, here = room(module).partition(".")
        if package != "metamorph" or here in ("", "__main__"):  # the face, and the way in
            continue
        for other in others:
            package, _, there = room(other).partition(".")
            if package != "metamorph" or there in ("", here):
                continue
            assert height[there] < height[here], f"{module} imports {other}"


def test_bench_imports_in_the_order_of_the_page():
    above = {"harness": set(), "ops": {"harness"}, "reports": {"harness"}}
    for name, allowed in above.items():
        inside = {other for other in rooms()[f"bench.{name}"] if other.startswith("bench.")}
        assert inside <= {f"bench.{other}" for other in allowed}


def test_metamorph_kernels_imports_nothing_else_of_ours():
    for module, others in imports().items():
        if module.startswith("metamorph_kernels"):
            foreign = [other for other in others if not other.startswith("metamorph_kernels")]
            assert not foreign, f"{module} imports {foreign}"


def test_metamorph_takes_of_the_kernels_what_is_public():
    taken = set()
    for module, path in MODULES.items():
        if not module.startswith("metamorph.") and module != "metamorph":
            continue
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                assert not any(name.startswith("metamorph_kernels") for name in names), path
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("metamorph_kernels"):
                assert node.module == "metamorph_kernels", f"{path}, line {node.lineno}"
                taken |= {alias.name for alias in node.names}
    assert "interval_attention" in taken
    assert taken <= set(metamorph_kernels.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package):
    for path in PACKAGES[package].rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST_FILE, f"{path}: {lines} lines"


def test_training_is_few_files():
    assert len(list((PACKAGES["metamorph"] / "training").glob("*.py"))) <= MOST_TRAINING_FILES
