"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_code_to_check():
    assert len(BLOCKS) >= 1


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block):
    exec(compile(block, "README.md", "exec"), {})


def test_every_public_op_has_an_example():
    import metamorph_kernels

    for name in metamorph_kernels.__all__:
        if name.islower() and name != "probe":
            assert f"{name}(" in "".join(BLOCKS), f"README shows no example of {name}"


def test_named_files_exist():
    root = Path(__file__).parent.parent
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / link).exists(), f"README links {link}"
