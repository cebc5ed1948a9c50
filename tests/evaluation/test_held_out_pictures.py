"""Pictures to be redrawn: toy scenes, a folder, records; what cannot be read is counted."""

import json

import pytest
from PIL import Image

from metamorph.errors import UserError
from metamorph.evaluation.checker import ATTRIBUTES, score
from metamorph.evaluation.held_out_pictures import in_batches, open_pictures
from tests.pages import ROOT


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them damaged, and records of two of them."""
    for name, colour in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (9, 7), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    records = [
        {"image": "red.png", "caption": "a red wall."},
        {"image": "blue.png", "caption": "the sky"},
        {"image": "gone.png", "caption": "nothing"},
        {"image": "red.png"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


def test_toy_scenes_show_what_their_captions_say_and_training_never_did():
    pictures = open_pictures(None, 6, seed=0, words=True)
    first = [*pictures]
    assert [one.number for one in first] == [0, 1, 2, 3, 4, 5]
    for one, again in zip(first, pictures, strict=True):
        assert (
            one.picture == again.picture and one.request == f"Generate an image of {one.caption}."
        )
        assert f"{one.scene.colour} {one.scene.shape} at the {one.scene.place}" in one.caption
        right = score(one.picture, one.scene)
        assert all(right[name] for name in ATTRIBUTES)


def test_a_folder_gives_its_pictures_and_counts_what_is_none(folder):
    pictures = open_pictures(folder, 10, seed=0)
    for _ in range(2):  # each time anew, and never counted twice
        found = [*pictures]
        assert [one.number for one in found] == [0, 1]
        assert sorted(one.picture.getpixel((0, 0)) for one in found) == [(0, 0, 255), (255, 0, 0)]
        assert {one.caption for one in found} == {""}
        [(cause, (count, example))] = pictures.skips.by_cause().items()
        assert (pictures.skips.tried, cause, count) == (3, "corrupt image", 1)
        assert "broken.png" in example


def test_a_picture_is_cropped_to_its_middle_where_the_decoder_was_taught_so(tmp_path):
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    for fit, size in (("squash", (30, 10)), ("crop", (10, 10))):
        [one] = open_pictures(tmp_path, 9, seed=0, fit=fit)
        assert one.picture.size == size
    assert one.picture.getcolors() == [(100, (0, 0, 255))]


def test_no_more_than_asked_for_are_opened(folder):
    pictures = open_pictures(folder, 1, seed=0)
    assert len([*pictures]) == 1


def test_records_bring_captions_where_they_are_needed(folder):
    pictures = open_pictures(folder / "captions.jsonl", 10, seed=0, words=True)
    assert sorted(one.caption for one in pictures) == ["a red wall", "the sky"]
    assert pictures.skips.counts == {"missing image": 1, "malformed record": 1}
    without = open_pictures(folder / "captions.jsonl", 10, seed=0)
    assert len([*without]) == 3


def test_pictures_of_records_may_lie_elsewhere(folder, tmp_path_factory):
    records = tmp_path_factory.mktemp("records") / "captions.jsonl"
    records.write_text((folder / "captions.jsonl").read_text())
    pictures = open_pictures(records, 10, seed=0, words=True, image_root=folder)
    assert len([*pictures]) == 2


def test_the_seed_decides_which_come_first(folder):
    def order(seed: int) -> list:
        return [one.picture.getpixel((0, 0)) for one in open_pictures(folder, 9, seed)]

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(8)}) == 2


@pytest.mark.parametrize(
    ("name", "words", "problem"),
    [
        ("empty", False, "^--data: .*empty holds no picture"),
        ("gone", False, "^--data: .*gone does not exist, expected a folder of pictures"),
        ("red.png", False, "^--data: .*red.png is no folder of pictures, nor one of .json, "),
        ("gone.jsonl", False, "^--data: .*gone.jsonl does not exist"),
        ("", True, "^--data: the pictures of .* come without a word about them"),
    ],
)
def test_what_holds_no_pictures_is_a_sentence(folder, name, words, problem):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=problem):
        open_pictures(folder / name, 10, seed=0, words=words)


def test_a_root_goes_with_records_alone(folder):
    with pytest.raises(UserError, match="--image-root goes with JSON lines only"):
        open_pictures(folder, 10, seed=0, image_root=folder)
    with pytest.raises(UserError, match="--image-root goes with --data only"):
        open_pictures(None, 10, seed=0, image_root=folder)
    with pytest.raises(UserError, match="--fit goes with --data only"):
        open_pictures(None, 10, seed=0, fit="crop")
    with pytest.raises(UserError, match="^--image-root: .*gone does not exist"):
        open_pictures(folder / "captions.jsonl", 10, seed=0, image_root=folder / "gone")


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_batches_hold_all_of_them_in_order(count, sizes):
    batches = [*in_batches(open_pictures(None, count, seed=0), 3)]
    assert [len(batch) for batch in batches] == sizes
    assert [one.number for batch in batches for one in batch] == [*range(count)]


def test_the_photographs_of_the_examples_are_records_with_captions(tmp_path):
    """Of scikit-image, which is not installed here: their names stand for the real files."""
    records = ROOT / "examples/evaluation/photographs.jsonl"
    names = [json.loads(line)["image"] for line in records.read_text().splitlines()]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    pictures = open_pictures(records, 100, seed=0, words=True, image_root=tmp_path)
    assert len({one.caption for one in pictures}) == len(names) == 10
