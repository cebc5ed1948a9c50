"""How Sphinx builds the site: `make docs`.

The sources are the repository's own Markdown files where they stand, so that the same links work on
GitHub and here; a link to a file that is no page becomes a download of it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import metamorph  # noqa: E402  (after the path of `config_keys`)

project, author = "MetaMorph", "The MetaMorph authors"
copyright = author
release = version = metamorph.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "config_keys"]

# Pages.
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "*/README.md",
    "docs/**.md",
    "docs/site/*.rst",
]
exclude_patterns = [".*", "build", "runs", "tests"]  # not even looked through
myst_heading_anchors = 3
CONTENTS = """
```{toctree}
:caption: Use
:hidden:
docs/chat
docs/training
docs/one_pass
docs/student
docs/data
docs/recipes
docs/generation
docs/drawing
docs/serving
docs/evaluation
docs/lmms_eval
docs/findings
docs/smollm2
docs/reliability
docs/machines
docs/libraries
docs/library
examples/README
```
```{toctree}
:caption: Understand
:hidden:
docs/method
docs/architecture
docs/attention
docs/losses
docs/float8
docs/kernels
docs/scaling
docs/cuda
docs/cpu
docs/transformers
```
```{toctree}
:caption: Look up
:hidden:
docs/site/ops
docs/site/api
docs/site/keys
```
```{toctree}
:caption: Project
:hidden:
kernels/README
csrc/README
bench/README
docs/results/README
CONTRIBUTING
CHANGELOG
```
"""

# References from docstrings: a name in single backticks is code, as it is in Markdown.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # those of torch.nn.Module say nothing of ours
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88

# Looks. The theme comes with Sphinx.
html_theme = "alabaster"
html_title = "MetaMorph"
html_theme_options = {
    "description": "Teach a language model to see and to draw",
    "fixed_sidebar": True,
    "page_width": "72rem",
    "sidebar_width": "15rem",
    "show_powered_by": False,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_extra_path = ["index.html"]  # leads to README.html
html_copy_source = False


def add_contents(app, name: str, source: list[str]) -> None:
    """The README is the first page and stays as it is in the repository."""
    if name == root_doc:
        source[0] += CONTENTS


def setup(app) -> None:
    app.connect("source-read", add_contents)
