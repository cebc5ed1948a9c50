"""What is held out: by place alone, never trained on, and all else as before."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.config import DataConfig
from metamorph.data.holdout import HeldOut, KeptIn, RecordsAt, positions
from metamorph.data.mixture import Mixture
from metamorph.data.opening import open_parts, open_source, open_validation
from metamorph.errors import UserError


class Numbers:
    """Records that are their own places, in blocks."""

    def __init__(self, blocks: list[int]):
        self.blocks = blocks

    def __len__(self) -> int:
        return sum(self.blocks)

    def record(self, position: int) -> int:
        return position


@given(count=st.integers(2, 300), share=st.floats(0.001, 0.999))
def test_every_place_is_either_held_out_or_kept_in_order(count, share):
    try:
        held = HeldOut(count, share)
    except UserError as error:
        assert round(share * count) == count and "leaves none of" in str(error)
        return
    kept = KeptIn(held)
    out, rest = [held[i] for i in range(len(held))], [kept[i] for i in range(len(kept))]
    assert out == sorted(out) and rest == sorted(rest)
    assert sorted(out + rest) == list(range(count))
    assert len(out) == max(1, round(share * count))
    for place in range(count + 1):
        assert held.before(place) == sum(where < place for where in out)
        assert kept.before(place) == sum(where < place for where in rest)


@given(blocks=st.lists(st.integers(1, 20), min_size=2, max_size=8), share=st.floats(0.05, 0.5))
def test_blocks_hold_what_is_left_of_them(blocks, share):
    """So that a parquet row group is still read once."""
    for portion in ("training", "validation"):
        records = RecordsAt(Numbers(blocks), positions(sum(blocks), share, portion))
        places = [records.record(number) for number in range(len(records))]
        starts = [sum(blocks[:number]) for number in range(len(blocks) + 1)]
        inside = [
            sum(start <= place < end for place in places)
            for start, end in zip(starts, starts[1:], strict=False)
        ]
        assert records.blocks == inside and sum(inside) == len(records)


def test_what_is_held_out_is_spread_over_the_file():
    held = HeldOut(10_000, 0.01)
    assert [held[number] // 100 for number in range(100)] == list(range(100))


def write(path: Path, count: int, name: str) -> Path:
    turns = [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": "It."}]
    lines = [json.dumps({"id": f"{name}-{n}", "conversations": turns}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def ids(source, count: int | None = None) -> list[str]:
    return [source.sample(index).id for index in range(count or len(source))]


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_share_of_a_file_is_in_no_epoch_of_the_training(tmp_path, shuffle):
    path = str(write(tmp_path / "data.jsonl", 50, "a"))
    config = DataConfig(path=path, validation=0.1, shuffle=shuffle)
    held = ids(open_validation(config, seed=1))
    assert len(held) == 5 and set(held) == set(ids(open_validation(config, seed=2)))
    for seed in (1, 2):
        training = open_source(config, seed, portion="training")
        assert len(training) == 45
        found = Counter(ids(training, 3 * 45))
        assert found.keys() == set(ids(open_source(config, seed))) - set(held)
        assert set(found.values()) == {3}
    assert (ids(training) == sorted(ids(training), key=lambda name: int(name[2:]))) != shuffle


def test_of_every_part_of_a_mixture_a_share_is_held_out(tmp_path):
    write(tmp_path / "a.jsonl", 30, "a")
    write(tmp_path / "b.jsonl", 10, "b")
    mixture = tmp_path / "mixture.yaml"
    toy = "toy: {source: toy_scenes, samples: 20}\n"
    mixture.write_text("a: {path: a.jsonl}\nb: {path: b.jsonl}\n" + toy)
    config = DataConfig(source="mixture", path=str(mixture), validation=0.2)
    held = open_validation(config, 0)
    training = open_source(config, 0, portion="training")
    assert isinstance(held, Mixture) and isinstance(training, Mixture)
    assert [len(part) for part in held.sources] == [6, 2, 4]
    assert [len(part) for part in training.sources] == [24, 8, 16]
    for name, part in held.parts.items():
        trained = set(ids(training.parts[name], 2 * len(training.parts[name])))
        assert trained.isdisjoint(ids(part)) and len(trained) == len(training.parts[name])


def test_a_file_of_its_own_is_read_as_the_data_is(tmp_path):
    (tmp_path / "other").mkdir()
    path = write(tmp_path / "other" / "held.jsonl", 4, "held")
    config = DataConfig(path=str(write(tmp_path / "data.jsonl", 9, "a")), validation=str(path))
    assert set(ids(open_validation(config, 0))) == {f"held-{number}" for number in range(4)}
    assert len(open_source(config, 0, portion="training")) == 9


def test_a_mixture_may_be_what_is_measured_on(tmp_path):
    write(tmp_path / "held.jsonl", 4, "held")
    mixture = tmp_path / "held.yaml"
    mixture.write_text("some: {path: held.jsonl}\n")
    config = DataConfig(source="toy_scenes", validation=str(mixture))
    assert set(ids(open_validation(config, 0))) == {f"held-{number}" for number in range(4)}


def test_tools_that_look_at_data_see_what_is_held_out_as_well(tmp_path):
    """A share of it lies in the data itself."""
    held = write(tmp_path / "held.jsonl", 4, "held")
    (tmp_path / "held.yaml").write_text("some: {path: held.jsonl}\nmore: {path: data.jsonl}\n")
    config = DataConfig(path=str(write(tmp_path / "data.jsonl", 9, "a")))

    def lengths(validation) -> dict[str, int]:
        parts = open_parts(replace(config, validation=validation), 0)
        return {name: len(part) for name, part in parts.items()}

    assert lengths("") == lengths(0.2) == {"data": 9}
    assert lengths(str(held)) == {"data": 9, "data.validation, data": 4}
    found = lengths(str(tmp_path / "held.yaml"))
    assert found == {"data": 9, "data.validation, some": 4, "data.validation, more": 9}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DataConfig(path="data.jsonl", validation="no.jsonl"),
            "^data.validation: no.jsonl does not exist",
        ),
        (
            DataConfig(source="toy_scenes", validation="held.jsonl"),
            "held.jsonl is no mixture file, .* data.source toy_scenes does not say how",
        ),
        (DataConfig(path="data.jsonl", validation=0.9), "a share of 0.9 leaves none of 3 samples"),
    ],
)
def test_what_cannot_be_held_out_is_named(tmp_path, monkeypatch, config, message):
    write(tmp_path / "data.jsonl", 3, "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_validation(config, 0)
