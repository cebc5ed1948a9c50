"""The pictures that the decoder trains on, in an order that no number of processes changes."""

import pytest
from PIL import Image

from metamorph.data.conversation import Sample
from metamorph.data.pictures import PictureLanes, PictureStream
from metamorph.errors import SampleError, UserError


class Numbered:
    """Sample i has i % 3 pictures; each tells sample and place. Every fifth sample is broken."""

    def __len__(self):
        return 1000

    def sample(self, index: int) -> Sample:
        if index % 5 == 4:
            raise SampleError("corrupt image", f"sample {index}")
        return Sample(str(index), (), tuple(picture(index, place) for place in range(index % 3)))


def picture(index: int, place: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (index // 256, index % 256, place))


def told(image: Image.Image) -> tuple[int, int]:
    high, low, place = image.getpixel((0, 0))
    return 256 * high + low, place


def test_every_picture_of_a_usable_sample_comes_once():
    stream = PictureStream(Numbered())
    seen = [told(next(stream)) for _ in range(10)]
    assert seen == [
        (1, 0), (2, 0), (2, 1), (5, 0), (5, 1), (7, 0), (8, 0), (8, 1), (10, 0), (11, 0)
    ]  # fmt: skip
    assert stream.skips.by_cause() == {"corrupt image": (2, "sample 4")}
    assert stream.skips.tried == 12  # samples 0 to 11


def test_two_and_four_processes_take_the_pictures_of_one():
    def batches(world_size: int) -> list[list]:
        shares = [PictureLanes(Numbered(), 4, rank, world_size) for rank in range(world_size)]
        found = []
        for _ in range(20):
            batch = [None] * 4
            for share in shares:
                batch[share.own] = map(told, share.next_pictures())
            found.append(batch)
        return found

    assert batches(1) == batches(2) == batches(4)


def test_other_processes_go_on_where_some_stopped():
    whole = PictureLanes(Numbered(), 4)
    two = [PictureLanes(Numbered(), 4, rank, 2) for rank in range(2)]
    for _ in range(7):
        whole.next_pictures()
        states = [(lanes.next_pictures(), lanes.state_dict())[1] for lanes in two]
    again = PictureLanes(Numbered(), 4)
    again.load_state_dict(states[0] | states[1])
    assert [told(i) for i in again.next_pictures()] == [told(i) for i in whole.next_pictures()]
    assert again.last_samples() == whole.last_samples()
    assert again.skips().counts == whole.skips().counts


def test_a_source_without_pictures_is_an_error():
    class Empty(Numbered):
        def sample(self, index: int) -> Sample:
            return Sample(str(index), ())

    with pytest.raises(UserError, match="no picture in 2000 samples in a row"):
        next(PictureStream(Empty()))
