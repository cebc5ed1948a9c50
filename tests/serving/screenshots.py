"""Takes the pictures of the page in docs/images, of a server of the quickstart's model:
`python -m tests.serving.screenshots http://127.0.0.1:8000/`."""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from metamorph.data.toy.scenes import Scene, render
from tests.serving.browser import chromium
from tests.serving.page_hands import answers, ask, button, ended, file

IMAGES = Path(__file__).parent.parent.parent / "docs/images"
WIDE, PHONE = {"width": 900, "height": 940}, {"width": 360, "height": 880}
SEEN = Scene("triangle", "purple", "large", "top right")
COLOURS = 128  # of a file: the page has few


def shoot(address: str) -> None:
    """Pictures of three conversations with the model that answers at `address`."""
    with chromium() as browser:
        page = opened(browser, address, WIDE, "light")
        page.set_input_files("#files", file("scene.png", render(SEEN)))
        said(page, "Make the triangle green.")
        button(page, "What the model sees").click()
        expect(page.locator(".seen")).to_be_visible()
        said(page, "What shape is it?")
        save(page, "chat-light")

        page = opened(browser, address, WIDE, "dark")
        said(page, "Generate an image of a large green cross at the top left.")
        for number in (2, 3):
            button(page, "Redraw").click()
            expect(page.locator(".place")).to_have_text(f"{number} of {number}")
        slow_down(page)
        ask(page, "Make the cross red.")
        expect(page.locator(".turn:last-child .cells i").nth(8)).to_have_class("done")
        save(page, "chat-dark")
        page.close()

        page = opened(browser, address, PHONE, "light")
        page.set_input_files("#files", file("scene.png", render(SEEN)))
        said(page, "Zoom in, then answer. What shape is it?")
        save(page, "chat-phone")


def opened(browser: Browser, address: str, viewport: dict, scheme: str) -> Page:
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page.goto(address)
    button(page, "Settings").click()
    page.get_by_label("Seed").fill("1")
    button(page, "Done").click()
    return page


def slow_down(page: Page) -> None:
    """As over a slow line: what a toy model predicts in a blink can be seen."""
    line = {"offline": False, "latency": 0, "downloadThroughput": 3000, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", line)


def said(page: Page, question: str) -> None:
    """Asks and waits for the whole answer."""
    before = answers(page).count()
    ask(page, question)
    expect(answers(page)).to_have_count(before + 1)
    ended(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def save(page: Page, name: str) -> None:
    page.mouse.move(0, 0)  # over nothing
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    shoot(sys.argv[1])
