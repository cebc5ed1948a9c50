"""YAML that costs more than a moment, or stands for more than it says, is refused in a sentence."""

from pathlib import Path

import pytest

from metamorph.config.data_keys import PartConfig
from metamorph.config.reading import load_config, read_section
from metamorph.config.strict_yaml import LARGEST_FILE, MOST_NODES, parse_text, read_yaml
from metamorph.errors import LONGEST_MESSAGE, UserError


def problem(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 500 and message.isprintable()
    return message


def aliases(first: str, rest: str, levels: int = 9) -> str:
    """Lines of which each is nine times the one before."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, levels):
        nine = ",".join(f"*a{level - 1}" for _ in range(9))
        lines.append(f"a{level}: &a{level} {rest.replace('...', nine)}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (aliases("[x]", "[...]"), "its aliases stand for more than a run file can hold"),
        (aliases("{x: 1}", "{<<: [...]}"), "its aliases stand for more than a run file can hold"),
        (aliases("x" * 100_000, "[...]"), "its aliases stand for more than a run file can hold"),
        ("a: &a [*a]", "an alias stands within itself"),
        ("a: &a {b: {c: *a}}", "an alias stands within itself"),
        ("\n".join(f"- &a{n + 1} [{f'*a{n}' if n else 1}]" for n in range(100)), "its aliases"),
        ("a: " + "[" * 5_000, "nested too deeply"),
        ("{" * 5_000, "nested too deeply"),
        ("- " * 1000, "nested too deeply"),
        ("[" + "x," * MOST_NODES + "]", "too many keys and values"),
        ("#" * (LARGEST_FILE + 1), "it is larger than 128 KiB"),
        ("seed: " + "9" * 5000, "is not a valid int"),
        ("seed: 0x" + "f" * 5000, "is not a valid int"),
        ("seed: " + "1:" * 5000 + "1", "is not a valid int"),
        ("rate: 1." + "0" * 5000, "is not a valid float"),
        ("k" * 1000 + ": 1\n" + "k" * 1000 + ": 2", "stands twice"),
        ("a: \x1b[31m", "not valid YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_what_would_cost_more_than_a_moment(tmp_path, text, expected):
    assert expected in problem(tmp_path, text)


def test_aliases_that_stand_for_little_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    one = {"x": 1}
    assert read_yaml(tmp_path / "a.yaml") == {"a": one, "b": {"x": 1, "y": 2}, "c": [one, one]}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfstage: align\r\n")
    assert read_yaml(tmp_path / "a.yaml") == {"stage": "align"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gone.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "null byte"),
        ("a" * 5000, "too long"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read(tmp_path, path, expected):
    with pytest.raises(UserError, match=f"cannot read the file: .*{expected}"):
        read_yaml(tmp_path / path)


def test_values_and_keys_of_any_length_are_shown_in_part(tmp_path):
    path = tmp_path / "run.yaml"
    long = "k" * 1_000  # YAML has no longer keys
    for text in (
        f"{long}: 1", f"training: {{{long}: 1}}", f"a.{long}: 1", f"training: {long}",
        f"stage: {long}", f"data: {{path: [{long}]}}", f"seed: [{'9,' * 5000}]",
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            load_config(path)
        assert len(str(caught.value)) <= LONGEST_MESSAGE
    with pytest.raises(UserError, match="unknown key 'kkk.*the nearest is"):
        read_section(PartConfig, {long: 1}, "a mixture")


def test_text_of_an_option_that_is_no_yaml_stays_text():
    for text in ("[" * 5000, "9" * 5000, "&a [*a]", "a: b: c"):
        assert parse_text(text) == text
    assert parse_text("{caption: 1}") == {"caption": 1}
