"""Mixtures: shares follow the weights closely, every part in its own order, nothing counted."""

from collections import Counter

import pytest
from data_files import turns, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.config import DataConfig, PartConfig
from metamorph.data.mixture import PERIOD, Mixture, parts_of
from metamorph.data.mixture_file import read_mixture
from metamorph.data.opening import open_source
from metamorph.errors import UserError


class Numbers:
    """A source of so many samples, each called by its index."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> int:
        return index


def mixture(weights: list[float], seed: int = 0) -> Mixture:
    return Mixture({str(i): Numbers(100) for i in range(len(weights))}, weights, seed)


@settings(max_examples=15)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_shares_follow_the_weights_at_every_moment(weights, seed):
    mixed = mixture(weights, seed)
    seen = Counter()
    for index in range(3000):
        seen[mixed.locate(index)[0]] += 1
        if index % 97 == 0:
            for part, weight in enumerate(weights):
                expected = weight / sum(weights) * (index + 1)
                assert abs(seen[part] - expected) < 8  # random draws would be off by 50


@pytest.mark.parametrize("weights", [[1, 1], [7067, 5000, 1595, 1413, 509, 482], [1, 10_000]])
def test_each_part_is_gone_through_in_its_order(weights):
    mixed = mixture(weights)
    following = [0] * len(weights)
    for index in range(2 * PERIOD + 100):
        part, place = mixed.locate(index)
        assert place == following[part]
        following[part] += 1


@pytest.mark.parametrize("lanes", [2, 8, 12, 1536, PERIOD // 2])
def test_every_lane_meets_all_parts(lanes):
    weights = [0.44, 0.311, 0.099, 0.15]
    mixed = mixture(weights)
    lane = Counter(mixed.locate(index)[0] for index in range(1, lanes * PERIOD, lanes))
    for part, weight in enumerate(weights):
        assert abs(lane[part] - weight * PERIOD) < 1


def test_seeds_begin_elsewhere():
    one, other = mixture([1, 2, 3], 0), mixture([1, 2, 3], 1)
    assert [one.locate(i)[0] for i in range(60)] != [other.locate(i)[0] for i in range(60)]


def write_parts(folder):
    (folder / "a").mkdir()
    for name, count in (("a/x", 30), ("y", 10)):
        records = [{"id": f"{name}{i}", "conversations": turns("q", "a")} for i in range(count)]
        write_lines(folder / f"{name}.jsonl", *records)
    return folder / "mixture.yaml"


def open_file(path, **options):
    return open_source(DataConfig(source="mixture", path=str(path), **options), seed=0)


def test_paths_start_from_the_mixture_file_and_sizes_are_weights(tmp_path, monkeypatch):
    path = write_parts(tmp_path)
    path.write_text("first: {path: a/x.jsonl}\nsecond: {path: y.jsonl}\n")
    monkeypatch.chdir("/")
    source = open_file(path)
    assert len(source) == 40 and list(parts_of(source)) == ["first", "second"]
    ids = [source.sample(i).id for i in range(400)]
    assert sum(name.startswith("y") for name in ids) == pytest.approx(100, abs=5)
    assert len(set(ids[:36])) == 36  # an epoch of each part, before any repeats
    assert ids == [open_file(path).sample(i).id for i in range(400)]


def test_equal_parts_come_in_different_orders(tmp_path):
    path = write_parts(tmp_path)
    path.write_text("one: {path: a/x.jsonl}\nother: {path: a/x.jsonl}\n")
    one, other = parts_of(open_file(path)).values()
    assert [one.sample(i).id for i in range(30)] != [other.sample(i).id for i in range(30)]
    one, other = parts_of(open_file(path, shuffle=False)).values()
    assert [one.sample(i).id for i in range(30)] == [other.sample(i).id for i in range(30)]


def test_settings_are_checked_as_those_of_a_run(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text("a: {source: webdataset, family: captions, path: x, fields: {caption: TEXT}}")
    expected = PartConfig("webdataset", "captions", "x", fields={"caption": "TEXT"})
    assert read_mixture(path) == {"a": expected}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected the parts of a mixture"),
        ("[1]", "expected the parts of a mixture"),
        ("a: 3", "part 'a'.*key: value"),
        ("a: {wieght: 1}", "part 'a': unknown key 'wieght'; the nearest is 'weight'"),
        ("a: {weight: -1}", "part 'a': key 'weight' got -1; it needs a number, at least 0"),
        ("a: {row_length: 5}", "part 'a': unknown key 'row_length'"),
        ("a: {source: mixture}", "part 'a': key 'source' got 'mixture'; it needs one of"),
        ("a: {fields: {caption: 3}}", "key 'fields'.*names to names"),
        ("a: {path: gone.jsonl}", "part 'a': data.path:.*gone.jsonl does not exist"),
        ("a: {}", "part 'a': data.path: it is empty"),
        (f"? {'a' * 101}\n: {{}}", "'aaa.*' cannot be the name of a part, expected at most 100"),
        ('"\\e[2J": {}', r"'\\x1b\[2J' cannot be the name of a part"),
        ("a: {path: y.jsonl}\na: {path: y.jsonl}", "key 'a' stands twice"),
    ],
)
def test_mistakes_are_named_with_file_and_part(tmp_path, text, problem):
    path = write_parts(tmp_path)
    path.write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        open_file(path)
    assert "mixture.yaml" in str(caught.value)
