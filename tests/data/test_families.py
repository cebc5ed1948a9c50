"""What conversation a record stands for, family by family."""

import pytest
from data_files import turns, write_lines
from PIL import Image

from metamorph.config import DataConfig
from metamorph.data.conversation import check_conversation
from metamorph.data.images import key_of
from metamorph.data.opening import open_source
from metamorph.errors import SampleError

TARGET = {"name": "a", "bbox": [0, 0, 9, 9]}


@pytest.fixture
def folder(tmp_path):
    """A picture, red on its left and blue on its right half, and a green one."""
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    picture.save(tmp_path / "p.png")
    Image.new("RGB", (40, 20), "green").save(tmp_path / "q.png")
    return tmp_path


def source_of(folder, family, *records, seed=0):
    path = write_lines(folder / "data.jsonl", *records)
    return open_source(DataConfig(family=family, path=str(path), shuffle=False), seed)


def colours(sample) -> list[tuple[int, int]]:
    """Red and blue at the top left pixel of each image."""
    return [image.open().getpixel((0, 0))[::2] for image in sample.images]


def test_captions(folder):
    records = [{"id": "a", "image": "p.png", "caption": " two halves. "}]
    sample = source_of(folder, "captions", *records).sample(0)
    assert [turn.text for turn in sample.turns] == [
        "Generate an image of two halves.",
        "Here is an image based on your request: <image>",
    ]
    check_conversation(sample)


def test_edits(folder):
    record = {"original_image": "p.png", "edit_prompt": "make it green", "edited_image": "q.png"}
    sample = source_of(folder, "edits", record).sample(0)
    assert [turn.text for turn in sample.turns] == ["<image>make it green", "<image>"]
    assert colours(sample) == [(255, 0), (0, 0)]


def test_a_box_is_cut_out_of_the_image(folder):
    record = {"id": "b", "image": "p.png", "box": [22, 0, 38, 10],
              "conversations": turns("<image>\nWhat colour is the right?", "blue")}  # fmt: skip
    sample = source_of(folder, "boxes", record).sample(0)
    check_conversation(sample)
    prompt, response = (turn.text for turn in sample.turns)
    assert prompt.startswith("<image>What colour is the right?")
    assert "<image> blue" in response
    whole, part = (image.open() for image in sample.images)
    assert whole.size == (40, 20) and part.size == (16, 10)
    assert part.getpixel((0, 0)) == (0, 0, 255)


def test_visual_cot_as_published(folder):
    record = {
        "image": ["p.png", "p.png###[22, 0, 38, 10]"],
        "conversations": turns(
            "<image>\nWhat colour is the right? Please provide the bounding box coordinate of "
            "the region that can help you.", "[0.5, 0, 1, 0.5]", "<image>", "blue",
        ),
    }  # fmt: skip
    sample = source_of(folder, "boxes", record).sample(0)
    check_conversation(sample)
    assert "bounding box" not in sample.turns[0].text
    assert sample.turns[1].text.endswith("<image> blue") and len(sample.turns) == 2
    assert sample.images[1].open().size == (16, 10)


def test_vstar_targets_are_marked_with_their_names(folder):
    record = {"image": "q.png", "target_instances": [{"name": "hat", "bbox": [10, 5, 12, 10]}],
              "conversations": turns("Where is the hat?", "In the middle.")}  # fmt: skip
    sample = source_of(folder, "boxes", record).sample(0)
    whole, marked = (image.open() for image in sample.images)
    assert whole.size == marked.size
    assert marked.getpixel((10, 5)) == marked.getpixel((22, 15)) == (255, 0, 0)
    assert marked.getpixel((3, 3)) == whole.getpixel((3, 3)) == (0, 128, 0)


def test_templates_vary_with_the_id_and_the_seed_and_with_nothing_else(folder):
    records = [{"id": str(i), "image": "p.png", "box": [0, 0, 9, 9], "conversations":
                turns("what?", "this")} for i in range(40)]  # fmt: skip
    one = source_of(folder, "boxes", *records)
    texts = [one.sample(i).turns for i in range(40)]
    assert len(set(texts)) > 5
    assert texts == [one.sample(i + 40).turns for i in range(40)]
    other = source_of(folder, "boxes", *records, seed=1)
    assert texts != [other.sample(i).turns for i in range(40)]


def test_boxes_reach_over_the_edge_but_not_beyond_it(folder):
    talk = turns("what?", "this")
    boxes = [[-5, -5, 10, 10], [50, 0, 60, 10], [10, 10, 10, 15]]
    records = [{"image": "p.png", "box": box, "conversations": talk} for box in boxes]
    source = source_of(folder, "boxes", *records)
    assert source.sample(0).images[1].open().size == (10, 10)
    for index in (1, 2):
        with pytest.raises(SampleError) as caught:
            source.sample(index).images[1].open()
        assert caught.value.cause == "empty box"


@pytest.mark.parametrize(
    ("family", "record"),
    [
        ("captions", {"image": "p.png"}),
        ("captions", {"image": "p.png", "caption": " . "}),
        ("captions", {"image": ["p.png", "q.png"], "caption": "a"}),
        ("edits", {"original_image": "p.png", "edit_prompt": "a"}),
        ("edits", {"original_image": "p.png", "edited_image": "q.png", "edit_prompt": 5}),
        ("boxes", {"image": "p.png", "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "box": [1, 2, 3], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "box": [1, 2, 3, None], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "box": [1, 2, 3, 1e999], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "box": [1, 2, 3, 4], "conversations": turns("q")}),
        ("boxes", {"image": ["p.png", "p.png###[1"], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "target_instances": [{}], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "target_instances": [3], "conversations": turns("q", "a")}),
        ("boxes", {"image": ["p.png", "p.png###{}"], "conversations": turns("q", "a")}),
        ("boxes", {"image": ["p.png", ["###[]"]], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "target_instances": 3, "conversations": turns("q", "a")}),
        (
            "boxes",
            {
                "image": "p.png",
                "target_instances": [TARGET] * 201,
                "conversations": turns("q", "a"),
            },
        ),
        ("boxes", {"image": "p.png", "box": [0, 0, 9, 10**400], "conversations": turns("q", "a")}),
        ("boxes", {"image": "p.png", "box": [0, 0, 1e308, 9], "conversations": turns("q", "a")}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_malformed_records(folder, family, record):
    with pytest.raises(SampleError) as caught:
        source_of(folder, family, record).sample(0)
    assert caught.value.cause == "malformed record"
    assert "data.jsonl:1" in str(caught.value)
    assert "Error" not in str(caught.value)  # it is a sentence, no exception of Python


def test_a_placeholder_written_in_a_caption_makes_the_sample_unusable(folder):
    record = {"image": "p.png", "caption": "a <image> of a cat"}
    with pytest.raises(SampleError, match="2 <image> placeholders but 1 images"):
        check_conversation(source_of(folder, "captions", record).sample(0))


def test_keys_tell_equal_content_whatever_its_name(folder):
    (folder / "copy.png").write_bytes((folder / "p.png").read_bytes())
    talk = turns("what?", "this")
    records = [
        {"image": name, "box": box, "conversations": talk}
        for name, box in (
            ("p.png", [0, 0, 9, 9]),
            ("copy.png", [0, 0, 9, 9]),
            ("p.png", [0, 0, 8, 9]),
        )
    ]
    source = source_of(folder, "boxes", *records)
    one, copy, other = ([key_of(image) for image in source.sample(i).images] for i in range(3))
    assert one == copy and one[0] == other[0] and one[1] != other[1] != one[0]
    assert len(one[0]) == 32
