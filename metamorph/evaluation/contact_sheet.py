"""Captions, real pictures and drawn pictures side by side on one sheet."""

from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from metamorph.pixels import as_shown

PICTURE_SIDE = 160  # pixels; 64 px pictures are enlarged 2.5 times
PADDING = 18  # inside a cell
GAP = 12  # between pictures, and between cells
MARGIN = 24  # around the sheet
CAPTION_SIZE, LABEL_SIZE = 17, 13  # font sizes, pixels
CAPTION_LINE, LABEL_LINE = 22, 19  # line heights, pixels
MARK_SIDE = 13
SUPERSAMPLING = 4  # of marks and rounded corners, which Pillow draws without smooth edges

SHEET = "#f3f4f6"
CELL = "#ffffff"
BORDER = "#dfe2e7"
INK = "#1d2430"
MUTED = "#657083"
RIGHT = "#157f4b"
WRONG = "#c4342b"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetDrawing:
    picture: Image.Image | None  # None if the model drew nothing
    right: dict[str, bool] = field(default_factory=dict)  # attribute: is it as the caption says?


@dataclass(frozen=True)
class SheetEntry:
    caption: str
    real: Image.Image
    drawings: dict[str, SheetDrawing]  # by label


@dataclass(frozen=True)
class _Cell:
    """An entry with its text laid out."""

    entry: SheetEntry
    caption: list[str]
    marks: list[list[list[tuple[str, int]]]]  # by drawing, lines of (attribute, x inside it)

    @property
    def mark_lines(self) -> int:
        return max(map(len, self.marks))

    @property
    def height(self) -> int:
        text = len(self.caption) * CAPTION_LINE + (1 + self.mark_lines) * LABEL_LINE
        return 2 * PADDING + text + PICTURE_SIDE + GAP + 4


@dataclass(frozen=True)
class ComparisonRow:
    """Pictures of the same thing by their labels; None where nothing was drawn."""

    caption: str
    pictures: dict[str, Image.Image | None]


def comparison_sheet(rows: list[ComparisonRow]) -> Image.Image:
    """One row of pictures each, under its caption; the labels of the first row head the columns.

    Raises `ValueError` for no rows, and for rows of other labels.
    """
    if not rows:
        raise ValueError("rows must hold at least one row, got none")
    labels = [*rows[0].pictures]
    if any([*row.pictures] != labels for row in rows):
        raise ValueError(f"rows must all have the labels {labels}")
    caption_font = ImageFont.load_default(CAPTION_SIZE)
    label_font = ImageFont.load_default(LABEL_SIZE)
    heads = [_wrap(label, label_font, PICTURE_SIDE) for label in labels]
    inside = len(labels) * (PICTURE_SIDE + GAP) - GAP  # pixels, the width of a row
    captions = [_wrap(row.caption, caption_font, inside) if row.caption else [] for row in rows]
    height = max(map(len, heads)) * LABEL_LINE + GAP
    height += sum(len(lines) * CAPTION_LINE + PICTURE_SIDE + GAP for lines in captions)
    sheet = Image.new("RGB", (2 * MARGIN + inside, 2 * MARGIN + height - GAP), SHEET)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + column * (PICTURE_SIDE + GAP) for column in range(len(labels))]
    for left, lines in zip(lefts, heads, strict=True):
        draw.multiline_text((left, MARGIN), "\n".join(lines), MUTED, label_font)
    top = MARGIN + max(map(len, heads)) * LABEL_LINE + GAP
    for row, lines in zip(rows, captions, strict=True):
        for line in lines:
            draw.text((MARGIN, top), line, INK, caption_font)
            top += CAPTION_LINE
        for left, picture in zip(lefts, row.pictures.values(), strict=True):
            _paste_picture(sheet, picture, left, top, label_font)
        top += PICTURE_SIDE + GAP
    return sheet


def contact_sheet(entries: list[SheetEntry], columns: int = 3) -> Image.Image:
    """One cell an entry, row by row: caption, the real picture, drawings and what is right in them.

    Raises `ValueError` for no entries, entries whose drawings have other labels, or none, and
    fewer than one column.
    """
    if not entries:
        raise ValueError("entries must hold at least one entry, got none")
    labels = [*entries[0].drawings]
    if not labels or any([*entry.drawings] != labels for entry in entries):
        raise ValueError(f"entries must hold drawings of the same labels, at least one: {labels}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(entries))
    caption_font = ImageFont.load_default(CAPTION_SIZE)
    label_font = ImageFont.load_default(LABEL_SIZE)
    inside = (1 + len(labels)) * (PICTURE_SIDE + GAP) - GAP  # pixels, the width of all pictures
    cell_width = inside + 2 * PADDING
    cells = [_lay_out(entry, inside, caption_font, label_font) for entry in entries]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + columns * (cell_width + GAP) - GAP,
            2 * MARGIN + sum(heights) + GAP * (len(rows) - 1),
        ),
        SHEET,
    )
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            x = MARGIN + column * (cell_width + GAP)
            _draw_cell(sheet, cell, (x, y, x + cell_width, y + height), caption_font, label_font)
        y += height + GAP
    return sheet


def _lay_out(entry: SheetEntry, width: int, caption_font: Font, label_font: Font) -> _Cell:
    marks = [_lay_out_marks(drawing.right, label_font) for drawing in entry.drawings.values()]
    return _Cell(entry, _wrap(entry.caption, caption_font, width), marks)


def _lay_out_marks(right: dict[str, bool], font: Font) -> list[list[tuple[str, int]]]:
    lines: list[list[tuple[str, int]]] = [[]]
    x = 0
    for name in right:
        needed = MARK_SIDE + 5 + round(font.getlength(name))
        if lines[-1] and x + needed > PICTURE_SIDE:
            lines.append([])
            x = 0
        lines[-1].append((name, x))
        x += needed + 16
    return lines


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines of whole words; a word wider than the line is broken."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line] or [""]


def _draw_cell(
    sheet: Image.Image,
    cell: _Cell,
    box: tuple[int, int, int, int],
    caption_font: Font,
    label_font: Font,
) -> None:
    x, y, _, bottom = box
    _paste_card(sheet, box)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(cell.caption):
        draw.text((x + PADDING, y + PADDING + number * CAPTION_LINE), line, INK, caption_font)
    # Pictures stand at the foot of the cell, so that they line up along a row of the sheet.
    marks = bottom - PADDING - cell.mark_lines * LABEL_LINE
    top = marks - GAP - PICTURE_SIDE
    pictures = {"real": cell.entry.real}
    pictures |= {label: drawing.picture for label, drawing in cell.entry.drawings.items()}
    lefts = [x + PADDING + number * (PICTURE_SIDE + GAP) for number in range(len(pictures))]
    for left, (label, picture) in zip(lefts, pictures.items(), strict=True):
        draw.text((left, top - LABEL_LINE), label, MUTED, label_font)
        _paste_picture(sheet, picture, left, top, label_font)
    drawings = zip(lefts[1:], cell.entry.drawings.values(), cell.marks, strict=True)
    for left, drawing, lines in drawings:
        for number, line in enumerate(lines):
            _draw_marks(sheet, drawing.right, line, left, marks + number * LABEL_LINE, label_font)


def _draw_marks(
    sheet: Image.Image,
    right: dict[str, bool],
    line: list[tuple[str, int]],
    left: int,
    top: int,
    font: Font,
) -> None:
    draw = ImageDraw.Draw(sheet)
    for name, offset in line:
        _paste_mark(sheet, right[name], left + offset, top + 2)
        position = (left + offset + MARK_SIDE + 5, top)
        draw.text(position, name, MUTED if right[name] else WRONG, font)


def _paste_card(sheet: Image.Image, box: tuple[int, int, int, int]) -> None:
    width, height = (box[2] - box[0]) * SUPERSAMPLING, (box[3] - box[1]) * SUPERSAMPLING
    card = Image.new("RGB", (width, height), SHEET)
    ImageDraw.Draw(card).rounded_rectangle(
        (0, 0, width - 1, height - 1), 10 * SUPERSAMPLING, CELL, BORDER, SUPERSAMPLING
    )
    sheet.paste(card.reduce(SUPERSAMPLING), box[:2])


def _paste_picture(
    sheet: Image.Image,
    picture: Image.Image | None,
    x: int,
    y: int,
    label_font: Font,
) -> None:
    draw = ImageDraw.Draw(sheet)
    if picture is None:
        middle = (x + PICTURE_SIDE / 2, y + PICTURE_SIDE / 2)
        draw.text(middle, "nothing", MUTED, label_font, anchor="mm")
    else:
        enlarged = as_shown(picture).resize((PICTURE_SIDE,) * 2, Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (x, y))
    draw.rectangle((x, y, x + PICTURE_SIDE - 1, y + PICTURE_SIDE - 1), outline=BORDER)


def _paste_mark(sheet: Image.Image, is_right: bool, x: int, y: int) -> None:
    """A tick or a cross: told apart by form, not by colour alone."""
    side = MARK_SIDE * SUPERSAMPLING
    mark = Image.new("RGB", (side, side), CELL)
    draw = ImageDraw.Draw(mark)
    tick = [[(0.1, 0.55), (0.4, 0.85), (0.92, 0.18)]]
    cross = [[(0.16, 0.16), (0.84, 0.84)], [(0.16, 0.84), (0.84, 0.16)]]
    for stroke in tick if is_right else cross:
        points = [(u * side, v * side) for u, v in stroke]
        draw.line(points, RIGHT if is_right else WRONG, 2 * SUPERSAMPLING, joint="curve")
    sheet.paste(mark.reduce(SUPERSAMPLING), (x, y))
