"""JSON as people write it: lines or one array, with marks, odd line ends and damage."""

import json
from pathlib import Path

import pytest
from data_files import turns
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.data.families.pictures import conversations
from metamorph.data.formats import places, text
from metamorph.data.formats.json_lines import JsonLines
from metamorph.data.sources import RecordSource
from metamorph.errors import SampleError, UserError

TEXT = st.text(st.sampled_from('a\\",[]{} é'), max_size=6)
JSON = st.recursive(
    st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner)
)


def record(name: str) -> dict:
    return {"id": name, "conversations": turns('say "hi", [then] {wait}\\', 'hi \\"')}


def open_file(path: Path) -> RecordSource:
    return RecordSource(JsonLines(path, path.parent, 10_000, {}), conversations, 0, shuffle=False)


def ids(path: Path) -> list[str]:
    """The id of each sample, or the cause of its skip."""
    source, found = open_file(path), []
    for index in range(len(source)):
        try:
            found.append(source.sample(index).id)
        except SampleError as error:
            found.append(error.cause)
    return found


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl", "mix"])
def test_the_one_array_of_llava_is_read_under_any_name(tmp_path, name, indent):
    path = tmp_path / name
    path.write_text("\n " + json.dumps([record("a"), record("b"), record("c")], indent=indent))
    assert ids(path) == ["a", "b", "c"]
    assert open_file(path).records.where(2) == f"{path}[2]"


@settings(max_examples=30)
@given(
    values=st.lists(JSON, max_size=3), chunk=st.integers(1, 40), indent=st.sampled_from([None, 1])
)
def test_elements_stand_where_the_parser_finds_them(tmp_path_factory, values, chunk, indent):
    path = tmp_path_factory.getbasetemp() / "values.json"
    content = json.dumps(values, indent=indent).encode()
    path.write_bytes(content + b" \n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "CHUNK", chunk)
        found = places.elements(path, 0)
    spans = zip(found.starts, found.ends, strict=True)
    assert [json.loads(content[start:end]) for start, end in spans] == values
    assert [*found.numbers] == [*range(len(values))] and not found.is_cut


def test_a_broken_element_costs_no_other(tmp_path):
    path = tmp_path / "a.json"
    a, b = json.dumps(record("a")), json.dumps(record("b"))
    path.write_text(f'[{a}, {{"id": 1,, }}, 5, {b},]')
    assert ids(path) == ["a", "malformed record", "malformed record", "b"]


def test_an_array_that_was_cut_off_keeps_what_is_whole_and_counts_the_rest(tmp_path):
    path = tmp_path / "a.json"
    whole = json.dumps([record("a"), record("b")])
    for lost in (1, 5, 60):
        path.write_text(whole[:-lost])
        assert ids(path) == ["a", "cut off file"]
    path.write_text(whole[: len(json.dumps([record("a")])) + 1] + " ")  # after the comma
    assert ids(path) == ["a", "cut off file"]
    path.write_text(json.dumps(record("a")) + "\n" + json.dumps(record("b"))[:-9])  # of lines
    assert ids(path) == ["a", "malformed record"]


def test_what_follows_an_array_is_not_lost_in_silence(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record("a")]) + json.dumps([record("b")]))
    with pytest.raises(UserError, match="something follows its array"):
        open_file(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n \r\n"])
def test_lines_end_and_begin_as_editors_write_them(tmp_path, end):
    path = tmp_path / "a.jsonl"
    content = end.join(["", json.dumps(record("a")), json.dumps(record("b")), ""])
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert ids(path) == ["a", "b"]
    assert open_file(path).records.where(0) == f"{path}:{1 + end.count(chr(10))}"
    # Two such files, one after the other: the mark stands within, too.
    half = b"\xef\xbb\xbf" + json.dumps(record("a")).encode() + end.encode()
    path.write_bytes(half + half)
    assert ids(path) == ["a", "a"]


def test_a_mark_before_an_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([record("a")]).encode())
    assert ids(path) == ["a"]


def gzipped() -> bytes:
    import gzip

    return gzip.compress(json.dumps(record("a")).encode())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(record("a")).encode("utf-16"), "it is UTF-16 or UTF-32, save it as UTF-8"),
        (json.dumps(record("a")).encode("utf-16-le"), "it is UTF-16 or UTF-32"),
        (json.dumps([record("a")]).encode("utf-32"), "it is UTF-16 or UTF-32"),
        (gzipped(), "it is compressed with gzip, decompress it first"),
        (json.dumps(record("a"), indent=2).encode(), "an object of several lines, expected"),
        (b"[]", "holds no samples"),
        (b" \n\n", "holds no samples"),
        (b"", "holds no samples"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"data.path: .*a.json.*{words}"):
        open_file(path)


def test_a_folder_is_not_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="is a folder, expected a JSONL file"):
        open_file(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": 1, "id": 2}', "key 'id' stands twice"),
        ('{"a": {"b": 1, "b": 1}}', "key 'b' stands twice"),
        ("{oops", "the line is not valid JSON: expecting property name"),
        ('{"id": "\t"}', "the line is not valid JSON: invalid control character at column 9"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"id": ' + "9" * 10_000 + "}", "not valid JSON: a number of more than 4300 digits"),
        ("3", "expected a JSON object, got 3"),
        (b'{"id": "\xff\xfe"}', "the line is not UTF-8 text, at byte 8"),
        ('"' + "x" * 2000, "it is longer than"),
    ],
)
def test_what_is_wrong_with_a_line_is_a_sentence(tmp_path, line, words, monkeypatch):
    if "longer" in words:
        monkeypatch.setattr("metamorph.data.formats.json_lines.LONGEST_RECORD", 1000)
    path = tmp_path / "a.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(json.dumps(record("a")).encode() + b"\n" + line)
    with pytest.raises(SampleError) as caught:
        open_file(path).sample(1)
    assert words in str(caught.value) and f"{path}:2" in str(caught.value)
    assert caught.value.cause == "malformed record" and "Error" not in str(caught.value)


def test_a_key_that_stands_twice_is_found_in_one_pass_over_many():
    many = ", ".join(f'"{number}": 0' for number in [*range(100_000), 99_999])
    with pytest.raises(ValueError, match="key '99999' stands twice"):
        text.read_object(f"{{{many}}}".encode(), "it")


def test_text_that_is_too_long_is_refused_before_it_is_parsed():
    with pytest.raises(ValueError, match="longer than 16 MiB"):
        text.read_object(b" " * (text.LONGEST_RECORD + 1), "it")
