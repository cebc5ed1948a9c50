"""What conversation a record stands for: a function for each family of data.

Section 3.2 of MetaMorph (arXiv 2412.14164) names six: image QA, generation, video QA, pure video,
visual thinking and image to image. Here are those whose images lie ready.
"""

from metamorph.data.conversation import ASSISTANT, SYSTEM, USER, Sample, Turn, images_first
from metamorph.data.formats.records import Record


def sample_of(record: Record, turns, images) -> Sample:
    return Sample(record.id, tuple(turns), tuple(images), record.where)


def ask(prompt: str, response: str) -> tuple[Turn, Turn]:
    return Turn(USER, prompt), Turn(ASSISTANT, response)


def conversations(record: Record) -> Sample:
    """LLaVA's and Cambrian's format: `image` (none, one or a list) and `conversations`. OpenAI's:
    `images` and `messages`. Without any `<image>` the images come before the first question."""
    images = record.pictures("image")
    return sample_of(record, images_first(record.turns(), len(images)), images)


def apart_from_system(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """The system turn, if there is one, and the others."""
    first = int(bool(turns) and turns[0].role == SYSTEM)
    return turns[:first], turns[first:]


def captions(record: Record) -> Sample:
    """`image` and `caption`: asks for the image, and the response draws it."""
    caption = record.text("caption").strip().rstrip(".")
    if not caption:
        raise ValueError("caption: it is empty")
    turns = ask(
        f"Generate an image of {caption}.", "Here is an image based on your request: <image>"
    )
    return sample_of(record, turns, [record.picture("image")])


def edits(record: Record) -> Sample:
    """InstructPix2Pix: `original_image`, `edit_prompt` and `edited_image`."""
    turns = ask(f"<image>{record.text('edit_prompt')}", "<image>")
    return sample_of(
        record, turns, [record.picture("original_image"), record.picture("edited_image")]
    )


def pictures(record: Record, fields: tuple[str, ...]) -> Sample:
    """The images of some fields, each none, one or a list, whatever words stand beside them."""
    return sample_of(record, (), [image for name in fields for image in record.pictures(name)])
