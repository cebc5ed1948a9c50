"""The pictures that the decoder trains on, in an order that no number of processes changes."""

import pytest
from PIL import Image

from metamorph.data.conversation import Sample
from metamorph.data.pictures import PictureLanes, Pictures, PictureStream, PreparedPicture
from metamorph.errors import SampleError, UserError
from metamorph.pixels import Square


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


def prepared(source) -> Pictures:
    return Pictures(source, encoder_square=Square(2), square=Square(1))


def stream_of(source, *squares: Square) -> PictureStream:
    pictures = Pictures(source, *squares) if squares else prepared(source)
    return PictureStream(pictures.sample, len(source))


def told(picture: PreparedPicture) -> tuple[int, int]:
    high, low, place = picture.pixels[0, 0].tolist()
    return 256 * high + low, place


def test_every_picture_of_a_usable_sample_comes_once():
    stream = stream_of(Numbered())
    seen = [told(next(stream)) for _ in range(10)]
    assert seen == [
        (1, 0), (2, 0), (2, 1), (5, 0), (5, 1), (7, 0), (8, 0), (8, 1), (10, 0), (11, 0)
    ]  # fmt: skip
    assert stream.skips.by_cause() == {"corrupt image": (2, "sample 4")}
    assert stream.skips.tried == 12  # samples 0 to 11


def test_two_and_four_processes_take_the_pictures_of_one():
    def batches(world_size: int) -> list[list]:
        shares = [
            PictureLanes(prepared(Numbered()), 4, rank, world_size) for rank in range(world_size)
        ]
        found = []
        for _ in range(20):
            batch = [None] * 4
            for share in shares:
                batch[min(share.streams) :: world_size] = map(told, share.next_pictures())
            found.append(batch)
        return found

    assert batches(1) == batches(2) == batches(4)


def test_other_processes_go_on_where_some_stopped():
    whole = PictureLanes(prepared(Numbered()), 4)
    two = [PictureLanes(prepared(Numbered()), 4, rank, 2) for rank in range(2)]
    for _ in range(7):
        whole.next_pictures()
        states = [(lanes.next_pictures(), lanes.state_dict())[1] for lanes in two]
    again = PictureLanes(prepared(Numbered()), 4)
    again.load_state_dict(states[0] | states[1])
    assert [told(i) for i in again.next_pictures()] == [told(i) for i in whole.next_pictures()]
    assert again.last_samples() == whole.last_samples()
    assert again.skips().counts == whole.skips().counts


def test_a_source_without_pictures_is_an_error():
    class Empty(Numbered):
        def sample(self, index: int) -> Sample:
            return Sample(str(index), ())

    with pytest.raises(UserError, match="no picture in 2000 samples in a row"):
        next(stream_of(Empty()))


class OneBroken(Numbered):
    """Of the three pictures of each sample, the second cannot be opened."""

    def sample(self, index: int) -> Sample:
        return Sample(str(index), (), (picture(index, 0), Broken(), picture(index, 2)))


class Broken:
    def open(self) -> Image.Image:
        raise SampleError("corrupt image", "no picture")


def test_pictures_before_a_broken_one_are_used_and_the_sample_is_counted_once():
    stream = stream_of(OneBroken())
    assert [told(next(stream)) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert stream.skips.by_cause() == {"corrupt image": (2, "sample 0: no picture")}
    assert stream.skips.tried == 3


def test_encoder_and_decoder_get_the_same_part_of_a_picture():
    """A white square between black sides."""
    wide = Image.new("RGB", (12, 4))
    wide.paste("white", (4, 0, 8, 4))

    class Wide(Numbered):
        def sample(self, index: int) -> Sample:
            return Sample("wide", (), (wide,))

    box = Image.Resampling.BOX
    squares = (Square(3, box), Square(6, box)), (Square(3, box, "crop"), Square(6, box, "crop"))
    squashed, cropped = (next(stream_of(Wide(), *pair)) for pair in squares)
    assert squashed.encoder_pixels[0, :, 0].tolist() == [0, 255, 0]
    assert squashed.pixels[0, :, 0].tolist() == [0, 0, 255, 255, 0, 0]
    assert cropped.encoder_pixels.shape == (3, 3, 3) and cropped.pixels.shape == (6, 6, 3)
    assert cropped.encoder_pixels.min() == cropped.pixels.min() == 255


def test_other_processes_prepare_the_same_pictures_and_hold_no_position():
    inline = PictureLanes(prepared(Numbered()), 4)
    ahead = PictureLanes(prepared(Numbered()), 4, workers=1)
    try:
        for _ in range(3):
            assert next_told(ahead) == next_told(inline)
        state = inline.state_dict()
        assert ahead.state_dict() == state
        assert ahead.last_samples() == inline.last_samples()
        expected = next_told(inline)
        next_told(ahead), next_told(ahead)
        ahead.load_state_dict(state)  # going back drops what was prepared, and nothing else
        assert next_told(ahead) == expected
        assert ahead.skips().counts == inline.skips().counts
    finally:
        ahead.close()


def next_told(lanes: PictureLanes) -> list[tuple[int, int]]:
    return [told(picture) for picture in lanes.next_pictures()]
