"""What all pages have in common: safe templates, a style, pictures and numbers in their text."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image


def page_templates(folder: Path) -> Environment:
    """The templates of a folder, which may extend `base.html.jinja`. What is put in is escaped, and
    what is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "embedded": embedded}
    return environment


def percent(share: float) -> str:
    """`0.912` as `91.2%`; whole numbers without a decimal."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


def duration(seconds: float) -> str:
    """`492.3` as `8 min 12 s`, from an hour on as `1 h 8 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def embedded(image: Image.Image) -> str:
    """The picture as a PNG `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
