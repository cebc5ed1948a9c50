"""Run files and mixtures, broken: each is read, or is refused in one line with exit code 2."""

import dataclasses
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import yaml

from metamorph.training import language_stage  # noqa: F401  loaded before the clock starts
from tests.fuzz.breaking import broken_bytes, broken_json
from tests.fuzz.harness import run_cli
from tests.six_families import write_six_families
from tests.tiny_run import tiny_config, write_language, write_vision

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = (
    BOMB, "[" * 100_000, "{a: " * 5000, "stage: !!python/object/apply:os.system [true]\n",
    "? " * 5000, "&a [*a]\n", "a: &a {b: *a}\n", "<<: &a {<<: *a}\n", "x" * 10**6, "- " * 5000,
    "stage: " + "9" * 10_000, "\ufeffstage: align\n", "---\n---\n", "stage: 2020-13-45\n", "\t", "",
    "%YAML 9.9\n---\n", "output: !!binary x\n", "'" * 999, "steps: 0x" + "f" * 9999,
)  # fmt: skip


def broken_yaml(chance: Random, values: dict) -> bytes:
    if chance.random() < 0.1:
        return chance.choice(TEXTS).encode()
    try:
        text = yaml.dump(broken_json(chance, values), allow_unicode=True, sort_keys=False)
    except RecursionError:
        text = chance.choice(TEXTS)
    data = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        place = chance.randrange(len(data) + 1)
        data = data[:place] + chance.choice(TEXTS).encode() + data[place:]
    return broken_bytes(chance, data) if chance.random() < 0.2 else data


def attack_run_file(chance: Random, folder: Path) -> str:
    config = tiny_config(folder, chance.choice(("language", "align", "instruct")))
    values = dataclasses.asdict(config)
    if chance.random() < 0.5:  # as people write them: what is set alone
        values = {
            key: {k: v for k, v in value.items() if v} if isinstance(value, dict) else value
            for key, value in values.items()
        }
    with TemporaryDirectory() as below:
        path = Path(below, "run.yaml")
        path.write_bytes(broken_yaml(chance, values))
        return run_cli("train", str(path), "--dry-run")


@pytest.mark.slow
def test_run_files(fuzzed, tmp_path):
    write_language(tmp_path / "llama")
    write_vision(tmp_path / "siglip")
    fuzzed(attack_run_file, 300)


def attack_mixture(chance: Random, folder: Path) -> str:
    written = yaml.safe_load((folder / "six_families.yaml").read_text())
    path = folder / f"fuzzed-{chance.random()}.yaml"
    path.write_bytes(broken_yaml(chance, written))
    try:
        return run_cli(
            "validate-data", str(path), "--model.language", str(folder / "llama"), "--samples", "2",
            fine=(0, 1),  # 1: it has looked, and too much is bad
        )  # fmt: skip
    finally:
        path.unlink()


@pytest.mark.slow
def test_mixtures(fuzzed, tmp_path):
    write_six_families(tmp_path)
    write_language(tmp_path / "llama")
    fuzzed(attack_mixture, 300)
