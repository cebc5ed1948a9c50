"""A packed row in text, as a person would read it."""

from itertools import count, groupby
from textwrap import indent

from metamorph.data.packing import PackedRow
from metamorph.errors import printable


def describe_row(title: str, row: PackedRow, tokenizer) -> str:
    """A packed row as text, document by document: pictures in brackets, targets in « »."""
    length = len(row.token_ids)
    images = len(row.images if row.features is None else row.features)
    lines = [
        f"{title}: {len(row.sample_ids)} documents and {images} pictures in "
        f"{row.used} of {length} tokens",
        f"  « » marks what is learned: {len(row.text_rows)} text tokens to say, "
        f"{len(row.visual_rows)} visual tokens to draw",
    ]
    ids = row.token_ids.tolist()
    learned = {at + 1 for rows in (row.text_rows, row.visual_rows) for at in rows.tolist()}
    visual = set(row.visual_positions.tolist())
    whole = {start for start, _ in row.bidirectional_spans}
    pictures = iter(row.images)  # none where their features are cached
    numbers = count(1)

    def show(is_picture: bool, places: list[int]) -> str:
        if is_picture:
            image = next(pictures, None)
            size = "cached" if image is None else f"{image.width} x {image.height}"
            sees = ", sees itself whole" if places[0] in whole else ""
            return f"[picture {next(numbers)}: {size}, {len(places)} tokens{sees}]"
        return tokenizer.decode([ids[at] for at in places], clean_up_tokenization_spaces=False)

    start = 0
    for number, (sample, tokens) in enumerate(
        zip(row.sample_ids, row.document_lengths, strict=False), start=1
    ):  # padding is a last document without a sample
        text = ""
        for is_learned, run in groupby(range(start, start + tokens), learned.__contains__):
            shown = "".join(
                show(kind, [*places]) for kind, places in groupby(run, visual.__contains__)
            )
            text += f"«{shown}»" if is_learned else shown
        start += tokens
        lines += ["", f"document {number}: {sample}, {tokens} tokens", indent(text, "    ")]
    return "\n".join(map(printable, "\n".join(lines).split("\n")))
