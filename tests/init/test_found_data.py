"""What a path holds: format, family, fields and pictures, told by opening it."""

import pytest

from metamorph.config import SourceConfig
from metamorph.data.formats.json_lines import JsonLines
from metamorph.errors import UserError
from metamorph.init import found_data
from metamorph.init.families import guess_family
from metamorph.init.found_data import find_data
from tests.data.data_files import image_bytes, turns, write_lines, write_tar, write_video


def found(name: object, words: bool = True, image_root: str = "") -> SourceConfig:
    return find_data(str(name), words, image_root).config


def fails(name: object, *arguments) -> str:
    with pytest.raises(UserError) as refusal:
        find_data(str(name), *(arguments or (True,)))
    return str(refusal.value)


def test_conversations_and_the_folder_of_their_pictures(here):
    assert found("data.jsonl") == SourceConfig(path="data.jsonl", image_root="pictures")
    assert "2 records" in find_data("data.jsonl", True).what
    assert found("data.jsonl", image_root="pictures").image_root == "pictures"
    assert "a.png" in fails("data.jsonl", True, "models") and "--image-root" in fails(
        "data.jsonl", True, "models"
    )


def test_every_family_is_told_by_its_fields(here):
    said = turns("<image>What is it?", "A circle.")
    records = {
        "boxes": {"image": "a.png", "box": [1, 1, 9, 9], "conversations": said},
        "edits": {"original_image": "a.png", "edit_prompt": "Redden it.", "edited_image": "b.png"},
        "video_questions": {"video": "film.mp4", "conversations": turns("What moves?", "A ball.")},
        "conversations": {"conversations": turns("Say hello.", "Hello.")},
        "captions": {"image": "a.png", "caption": "a circle"},
        "video_frames": {"video": "film.mp4"},
    }
    write_video(here / "pictures" / "film.mp4", frames=24)
    for family, record in records.items():
        write_lines(here / f"{family}.jsonl", record, record)
        assert found(f"{family}.jsonl").family == family


def test_fields_of_other_names_are_mapped(here):
    write_lines(here / "pairs.jsonl", {"URL": "x", "Image": "a.png", "TEXT": "a circle"})
    assert found("pairs.jsonl").fields == {"image": "Image", "caption": "TEXT"}
    assert found("pairs.jsonl").family == "captions"


def test_a_folder_stands_for_what_is_in_it(here):
    (here / "tars").mkdir()
    write_tar(here / "tars/0.tar", {"0.jpg": image_bytes(), "0.txt": b"a circle"})
    assert found("tars") == SourceConfig("webdataset", "captions", "tars")
    assert found("tars/*.tar").path == "tars/*.tar"
    assert found("pictures", words=False) == SourceConfig("pictures", path="pictures")
    assert found(here).path == str(here / "data.jsonl")
    write_lines(here / "more.jsonl", {})
    assert "holds data.jsonl, more.jsonl; name one of them" in fails(here)


def test_a_clone_of_a_data_set_says_where_its_samples_lie(here):
    (here / "clone/data").mkdir(parents=True)
    (here / "clone/README.md").write_text("# Pairs")
    (here / "clone/data/train-0.parquet").write_bytes(b"")
    assert fails("clone").endswith("no JSON, tar, parquet or picture; some lie in clone/data")
    (here / "clone/logo").mkdir()
    (here / "clone/logo/logo.png").write_bytes(image_bytes())
    assert "no words about them" in fails("clone") and "lie in clone/data" in fails("clone")
    assert found("clone", words=False).source == "pictures"
    (here / "deep/er/est").mkdir(parents=True)
    assert "deep holds no samples" in fails("deep")
    (here / "deep/er/est/a.PNG").write_bytes(image_bytes())
    assert found("deep", words=False).source == "pictures"


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text alone"])
def test_a_file_is_indexed_once_however_many_folders_lie_beside_it(here, monkeypatch, pictures):
    record = {"image": "a.png"} if pictures else {}
    write_lines(here / "lines.jsonl", {**record, "conversations": turns("What?", "It.")})
    for number in range(5):
        (here / f"other{number}").mkdir()
    indexed, tried = [], []
    whole = JsonLines.__init__

    def counted(records, *arguments, **options):
        indexed.append(arguments[0])
        whole(records, *arguments, **options)

    monkeypatch.setattr(JsonLines, "__init__", counted)
    monkeypatch.setattr(found_data, "guess_family", lambda *a: tried.append(a) or guess_family(*a))
    assert found("lines.jsonl").image_root == ("pictures" if pictures else "")
    assert len(indexed) == 1
    assert len(tried) == (8 if pictures else 1)  # nothing to look for in any of eight places


def test_a_mixture_and_generated_scenes(here):
    (here / "both.yaml").write_text("a: {path: data.jsonl, image_root: pictures}\n")
    assert found("both.yaml") == SourceConfig("mixture", path="both.yaml")
    assert found("toy_scenes") == SourceConfig("toy_scenes")


def test_what_cannot_be_used_is_one_sentence(here):
    (here / "notes.txt").write_text("no samples")
    write_lines(here / "other.jsonl", {"question": "x", "reply": "y"})
    (here / "empty").mkdir()
    assert fails("") == "--data: it is empty, expected a file or folder of samples"
    assert "nowhere.jsonl does not exist" in fails("nowhere.jsonl")
    assert "is no file of samples" in fails("notes.txt")
    assert "whose fields are 'question', 'reply'" in fails("other.jsonl")
    assert "holds no samples" in fails("empty")
    assert "no words about them" in fails("pictures")
    assert "webdataset has its pictures within" in fails("x/*.tar", True, "pictures")


def test_a_film_that_is_missing_is_no_conversation_without_pictures(here):
    write_lines(here / "films.jsonl", {"video": "no.mp4", "conversations": turns("What?", "It.")})
    assert "look like video_questions, but" in fails("films.jsonl")
