"""Ships configs/ inside the package `metamorph`, and a README whose links work on a package index.

Everything else stands in pyproject.toml. The CUDA C++ ops belong to the other distribution of this
repository: kernels/setup.py builds them.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup


def for_package_index(text: str) -> str:
    """Markdown without pictures of the repository; links to its files become their words."""
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["metamorph", "metamorph.*"]), "metamorph.configs"],
        package_dir={"metamorph.configs": "configs"},
        long_description=for_package_index(Path(__file__).with_name("README.md").read_text()),
        long_description_content_type="text/markdown",
    )
