"""Which family the records of a file are, told by what becomes of some of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from metamorph.config import SourceConfig
from metamorph.config.data_keys import Family
from metamorph.data.conversation import Sample
from metamorph.data.formats.records import Record
from metamorph.data.opening import family_of
from metamorph.errors import SampleError, UserError, shown

# Fields of each family. The one that asks for most comes first: its records are of others too.
FIELDS: dict[Family, tuple[str, ...]] = {
    "boxes": ("image", "conversations"),
    "edits": ("original_image", "edit_prompt", "edited_image"),
    "video_questions": ("video", "conversations"),
    "conversations": ("image", "conversations"),
    "captions": ("image", "caption"),
    "video_frames": ("video",),
}
OTHER_NAMES = {  # under which data sets have these fields, in small letters
    "image": "img picture photo image_path image_file file_name filename jpg png".split(),
    "conversations": "conversation dialogue dialog turns chat".split(),
    "caption": "text description prompt alt_text title sentence".split(),
    "original_image": "input_image source_image before".split(),
    "edit_prompt": "instruction edit_instruction edit".split(),
    "edited_image": "output_image target_image after".split(),
    "video": "video_path clip mp4".split(),
}
READ_ANYWAY = {"image": "images", "conversations": "messages"}
MOST_NAMES = 8  # of fields, in a message


@dataclass(frozen=True)
class Guess:
    """A family, its fields that have other names, and the samples that came of the records."""

    family: Family
    fields: dict[str, str]
    samples: list[Sample]
    problem: str = ""  # with the first record that has every field, and yet is no sample


def guess_family(records: list[Record], words: bool) -> Guess:
    """The family by which most of the records become samples.

    `words`: whether samples need any, as all stages but the decoder's do. Raises `UserError` if
    no record becomes a sample by any.
    """
    guesses = [_guess(family, records, words) for family in FIELDS]
    best = max(guesses, key=lambda guess: len(guess.samples))  # the first of equals
    if best.samples:
        return best
    names = sorted({name for record in records for name in record.values})
    for guess in guesses:
        if guess.problem:
            raise UserError(f"--data: its records look like {guess.family}, but {guess.problem}")
    raise UserError(
        f"--data: no family of docs/data.md fits these records, whose fields are "
        f"{', '.join(map(shown, names[:MOST_NAMES])) or 'none'}; rename them, or write data.fields "
        f"by hand"
    )


def _guess(family: Family, records: list[Record], words: bool) -> Guess:
    fields = _renamed(FIELDS[family], records)
    make = family_of(SourceConfig(family=family), seed=0, words=words)
    samples, problem = [], ""
    for record in (replace(record, names=fields) for record in records):
        if family == "conversations" and record.get("video") is not None:
            continue  # its frames would be left out in silence
        try:
            sample = make(record)
        except (SampleError, ValueError) as error:
            if not problem and all(record.get(field) is not None for field in FIELDS[family]):
                problem = str(error)
            continue
        if words or sample.images:
            samples.append(sample)
    return Guess(family, fields, samples, problem)


def _renamed(fields: tuple[str, ...], records: list[Record]) -> dict[str, str]:
    """The other name of each field that no record has under its own."""
    found: dict[str, str] = {}
    written = {name.lower(): name for record in records for name in record.values}
    for field in fields:
        if any(_has(record.values, field) for record in records):
            continue
        for name in (field, *OTHER_NAMES[field]):  # the field itself, in capitals
            if name in written and written[name] not in found.values():
                found[field] = written[name]
                break
    return found


def _has(values: Mapping, field: str) -> bool:
    return any(values.get(name) is not None for name in (field, READ_ANYWAY.get(field, field)))
