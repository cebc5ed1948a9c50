"""The page on a phone, by keyboard, in light and dark, without motion, read aloud."""

import re

import pytest
from playwright.sync_api import expect

from metamorph.generation.events import ImageProgress, ImageStarted
from tests.serving.page_hands import (
    CHAT,
    HALF,
    answered,
    ask,
    button,
    drawn,
    ended,
    field,
    file,
    picture,
    stream,
)

pytestmark = pytest.mark.slow
PHONE = {"width": 360, "height": 740}


def test_nothing_comes_from_elsewhere(open_page, puppet, address):
    page, asked = open_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    answered(page, puppet)
    assert any(url.endswith("page.css") for url in asked)
    assert all(url.startswith((address, "data:")) for url in asked)


def test_a_phone_shows_all_of_it_without_scrolling_sideways(open_page, puppet):
    page = open_page(viewport=PHONE, has_touch=True)
    page.set_input_files("#files", [file(f"{n}.png", picture(side=900)) for n in range(6)])
    expect(page.get_by_alt_text("To send")).to_have_count(6)
    answered(page, puppet, "W" * 300, "https://" + "a" * 300)
    page.get_by_role("button", name="What the model sees").first.click()
    expect(page.locator(".seen")).to_be_visible()
    button(page, "Redraw").click()
    expect(page.locator(".place")).to_have_text("2 of 2")
    for opens in (None, "Settings"):
        if opens:
            button(page, opens).click()
        widths = page.locator("html, main, dialog[open]").evaluate_all(
            "all => all.map((each) => [each.scrollWidth, each.clientWidth])"
        )
        assert all(inside <= outside for inside, outside in widths)
    for name in ("Clear", "Done"):
        button(page, name).scroll_into_view_if_needed()
        box = button(page, name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


def test_the_keyboard_does_everything(page, puppet):
    expect(field(page)).to_be_focused()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    answer = puppet.next()
    assert answer.messages[-1].text == "One\ntwo"
    answer.write("Yes.")
    answer.happen(ImageStarted(0, 4), *drawn())
    answer.finish()
    ended(page)
    expect(field(page)).to_be_focused()
    met = []
    for _ in range(16):
        page.keyboard.press("Tab")
        met.append(
            page.evaluate(
                """() => {
                    const {ariaLabel, textContent, title} = document.activeElement;
                    const style = getComputedStyle(document.activeElement);
                    const seen = style.outlineStyle !== "none" && style.outlineWidth !== "0px";
                    return [ariaLabel || textContent.trim() || title, seen];
                }"""
            )
        )
    names = {name for name, _ in met}
    wanted = {
        *("Send", "New", "Settings", "Dark colours", "Conversation", "Edit question"),
        *("Save", "Redraw", "Copy", "Try again", "Undo", "Add pictures"),
    }
    assert wanted <= names
    assert all(visible for name, visible in met if name in wanted)


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const light = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (colour !== "rgba(0, 0, 0, 0)") return colour;
        }
    };
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
        const words = [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
        if (!words || !node.checkVisibility() || node.closest("[aria-disabled=true]")) continue;
        const [low, high] = [light(getComputedStyle(node).color), light(ground(node))].sort();
        found.push([node.textContent.trim(), (high + 0.05) / (low + 0.05)]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_can_be_read(open_page, puppet, scheme):
    page = open_page(color_scheme=scheme)
    brightness = {"light": range(200, 256), "dark": range(0, 60)}

    def ground() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(re.search(r"\d+", colour)[0])

    assert ground() in brightness[scheme]
    answered(page, puppet)
    page.route(CHAT, lambda route: route.fulfill(**stream(HALF)))
    ask(page, "Once more")
    expect(page.get_by_role("alert")).to_be_visible()
    button(page, "Settings").click()
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 15
    assert [found for found in ratios if found[1] < 4.5] == []
    page.keyboard.press("Escape")

    switch = page.get_by_role("switch", name="Dark colours")
    expect(switch).to_be_checked(checked=scheme == "dark")
    switch.click()
    other = "dark" if scheme == "light" else "light"
    assert ground() in brightness[other]
    page.reload()
    assert ground() in brightness[other]


def test_who_wants_no_motion_gets_none(open_page, puppet):
    page = open_page(reduced_motion="reduce")
    ask(page)
    answer = puppet.next()
    answer.happen(ImageStarted(0, 4), ImageProgress(0, 2, 4))
    expect(page.locator(".cells .done")).to_have_count(2)
    moving = page.evaluate("document.getAnimations().length")
    answer.finish()
    ended(page)
    assert moving == 0


def test_screen_readers_hear_what_happens(page, puppet):
    ask(page)
    answer = puppet.next()
    heard = page.locator("#progress")
    expect(heard).to_have_text("The model answers.")
    answer.happen(ImageStarted(0, 4))
    expect(heard).to_have_text("Picture 1 begins.")
    answer.happen(*drawn())
    expect(heard).to_have_text("Picture 1 is drawn.")
    answer.write("There.")
    answer.finish()
    expect(heard).to_have_text("Answer: There.")
    names = page.locator("button, a, input, textarea").evaluate_all(
        "all => all.map((each) => each.ariaLabel || each.textContent.trim() || each.labels?.length)"
    )
    assert page.locator("img:not([alt])").count() == 0 and len(names) > 20
