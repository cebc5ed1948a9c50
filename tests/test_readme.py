"""The code of the README and of the how-to pages runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [
    pytest.param(block, page.name, id=page.name)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


def test_there_is_code_to_check():
    assert {block.values[1] for block in BLOCKS} >= {"README.md", "transformers.md"}


@pytest.mark.parametrize(("block", "page"), BLOCKS)
def test_python_blocks_run(block, page):
    exec(compile(block, page, "exec"), {})


def test_every_public_op_has_an_example():
    import metamorph_kernels

    shown = "".join(block.values[0] for block in BLOCKS)
    for name in metamorph_kernels.__all__:
        if name.islower() and name != "probe":
            assert f"{name}(" in shown, f"no page shows an example of {name}"


def test_named_files_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), f"README links {link}"
