"""docs/data.md: its examples, put into one folder with the shipped mixture, pack into rows."""

import re
from pathlib import Path
from typing import get_args

import pytest

from metamorph.config import DataConfig
from metamorph.config.data_keys import Family
from metamorph.config.reading import iter_fields
from metamorph.data.documents import Documents
from metamorph.data.lanes import Lanes
from metamorph.data.mixture import parts_of
from metamorph.data.mixture_file import read_mixture
from metamorph.data.opening import open_source
from metamorph.data.validate import validate_part
from tests.six_families import MIXTURE, PAGE, write_six_families


@pytest.fixture
def folder(tmp_path):
    write_six_families(tmp_path)
    return tmp_path


def open_example(folder):
    config = DataConfig(source="mixture", path=str(folder / MIXTURE.name))
    return open_source(config, seed=0)


def test_every_example_is_used_and_well_formed(folder, encoder):
    parts = parts_of(open_example(folder))
    assert len(parts) == 6
    assert {part.family for part in read_mixture(MIXTURE).values()} == set(get_args(Family))
    for name, part in parts.items():
        report = validate_part(name, part, encoder, row_length=2000)
        assert report.bad_share == 0, report.text()
    assert sum(map(len, parts.values())) == 3 + 2 + 2 + 2 + 3 + 1
    written = {path.name for path in folder.glob("*.jsonl")}
    assert written == {
        Path(p.path).name for p in read_mixture(MIXTURE).values() if "jsonl" in p.path
    }


def test_the_mixture_packs_into_rows_of_all_families(folder, encoder):
    source = open_example(folder)
    lanes = Lanes(Documents(source, encoder, 2000), 1, rows_per_step=2)
    rows = [row for _ in range(4) for row in lanes.next_rows()]
    assert not lanes.skips().counts
    assert all(row.used > 1500 for row in rows)
    assert any(len(row.visual_rows) for row in rows)
    seen = {source.locate(i)[0] for i in range(200)}
    assert seen == set(range(6))


def test_the_shares_are_those_of_the_paper():
    weights = {name: part.weight for name, part in read_mixture(MIXTURE).items()}
    total = sum(weights.values())
    shares = {name: round(100 * weight / total, 1) for name, weight in weights.items()}
    assert total == 16_066
    assert shares == {
        "image_qa": 44.0, "generation": 31.1, "video_qa": 9.9, "pure_video": 8.8,
        "visual_thinking": 3.2, "image_to_image": 3.0,
    }  # fmt: skip


def test_the_page_names_only_keys_that_exist():
    known = {key for key, *_ in iter_fields(DataConfig)}
    named = set(re.findall(r"`(?:--)?data\.(\w+)`", PAGE.read_text()))
    assert named and named <= known
