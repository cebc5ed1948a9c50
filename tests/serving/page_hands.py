"""Hands and eyes of a test on the page: what is asked, pressed and found there."""

import io

from PIL import Image
from playwright.sync_api import Locator, Page, expect

from metamorph.generation.events import (
    Event,
    ImageDrawn,
    ImageFeatures,
    ImageProgress,
    ImageStarted,
)
from tests.serving.puppet import Puppet, PuppetAnswer
from tests.serving.scripted import TOKENS, features_of

CHAT = "**/v1/chat/completions"
RED, BLUE = (255, 0, 0), (0, 0, 255)
DONE = "data: [DONE]\n\n"  # streams that a test makes up
HALF = 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n'


def picture(colour=RED, side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def drawn(colour=RED, number: int = 0) -> list[Event]:
    """The end of a picture whose tokens are there."""
    return [ImageFeatures(number, features_of(seed=0)), ImageDrawn(number, picture(colour))]


def file(name: str, image: Image.Image | None = None, **options) -> dict:
    """A file as a browser's dialog would hand it over."""
    buffer = io.BytesIO()
    (image or picture()).save(buffer, "PNG", **options)
    return {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()}


def field(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message")


def ask(page: Page, text: str = "Draw a circle.") -> None:
    field(page).fill(text)
    field(page).press("Enter")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def answers(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer")


def ended(page: Page) -> None:
    expect(button(page, "Send")).to_be_visible()


def answered(
    page: Page, puppet: Puppet, question: str = "Draw a circle.", text: str = "Here."
) -> PuppetAnswer:
    """One whole turn: words and a red picture."""
    ask(page, question)
    answer = puppet.next()
    answer.write(text)
    answer.happen(ImageStarted(0, TOKENS), ImageProgress(0, TOKENS, TOKENS), *drawn())
    answer.finish()
    ended(page)
    return answer


def stream(*lines: str) -> dict:
    return {"body": "".join(lines), "content_type": "text/event-stream"}
