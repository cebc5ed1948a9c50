"""What the pages show: their blocks of code, and the commands in those of the shell."""

import re
import shlex
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "kernels/README.md",
    ROOT / "bench/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def title(page: Path) -> str:
    """The page's name from the root of the repository, such as docs/data.md."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language; "" is for those without a mark."""
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, mark, text in fenced if mark == language]


def commands(block: str) -> list[str]:
    """The commands of a shell block without comments, each on one line unless quoted over several.

    Raises `ValueError` for a quote that is never closed.
    """
    block = re.sub(r"(^|\s+)#.*$", r"", block.replace("\\\n", " "), flags=re.MULTILINE)
    found, open_quote = [], ""
    for line in filter(None, block.splitlines()):
        text = open_quote + line
        try:
            shlex.split(text)
        except ValueError:  # no closing quotation
            open_quote = text + "\n"
            continue
        found.append(text if open_quote else " ".join(text.split()))
        open_quote = ""
    if open_quote:
        raise ValueError(f"no closing quotation: {open_quote}")
    return found
