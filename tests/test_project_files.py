"""The files that hosted services read say what the project says elsewhere."""

import re
from pathlib import Path

import yaml

import metamorph
from tests.lower_bounds import bounds

ROOT = Path(__file__).parent.parent


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = read("CITATION.cff")
    assert citation["version"] == metamorph.__version__
    assert citation["license"] == "Apache-2.0"
    assert [source["url"] for source in citation["references"]] == [
        "https://arxiv.org/abs/2412.14164"
    ]


def test_the_changelog_has_this_version():
    assert metamorph.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_changelog_names_every_op_and_verb():
    from metamorph.cli.command import VERBS
    from metamorph_kernels.backends import IMPLEMENTED

    named = set(re.findall(r"[\w-]+", (ROOT / "CHANGELOG.md").read_text()))
    assert {*IMPLEMENTED, *VERBS} <= named


def test_hosted_checks_are_those_of_a_clone():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    ends = {name: job["steps"][-1] for name, job in jobs.items()}
    assert ends == {
        "run": {"run": "bash .ci/run"},
        "lower-bounds": {"run": f"make lower-bounds TORCH={bounds()['torch']}.0"},
    }
    entries = [
        hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    assert "make lint" in entries
