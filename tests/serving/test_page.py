"""A conversation on the page, in headless Chromium: the test dictates what the model answers."""

import base64
import io
import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from metamorph.generation.events import DrawingProgress, ImageProgress, ImageStarted
from metamorph.generation.messages import USER
from tests.serving.page_hands import (
    BLUE,
    RED,
    answered,
    answers,
    ask,
    button,
    drawn,
    ended,
    field,
    file,
    picture,
)
from tests.serving.puppet import PATIENCE

pytestmark = pytest.mark.slow
SEEDS = 2**31  # of the page


def test_text_streams_and_stays_text(page, puppet):
    mark = "<img src=x onerror=\"document.title='broken in'\"><b>bold</b>"
    ask(page, mark)
    answer = puppet.next()
    assert answer.messages[-1].role == USER and answer.messages[-1].text == mark
    answer.write("One ")
    expect(answers(page)).to_contain_text("One")
    expect(answers(page)).to_have_attribute("aria-busy", "true")
    answer.write(f"two {mark}")
    answer.finish()
    expect(answers(page)).to_contain_text(f"One two {mark}")
    expect(answers(page)).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("article", name="Question")).to_contain_text(mark)
    assert page.locator("#turns img, #turns b").count() == 0 and page.title() == "MetaMorph"


def test_a_picture_appears_token_by_token_at_its_place(page, puppet):
    ask(page)
    answer = puppet.next()
    answer.write("Before. ")
    answer.happen(ImageStarted(0, 64), ImageProgress(0, 20, 64))
    expect(page.locator(".cells i")).to_have_count(64)
    expect(page.locator(".cells .done")).to_have_count(20)
    box = page.locator(".cells").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    tops = page.locator(".cells i").evaluate_all("all => all.map(each => each.offsetTop)")
    assert [tops.count(top) for top in sorted(set(tops))] == [8] * 8
    bar = page.get_by_role("progressbar", name="Picture 1")
    expect(bar).to_have_attribute("aria-valuetext", "20 of 64 tokens")

    answer.happen(ImageProgress(0, 64, 64), DrawingProgress(0, 2, 10, None))
    answer.write("After.")  # words go on while it is drawn
    expect(bar).to_have_attribute("aria-valuetext", "drawing, step 2 of 10")
    expect(page.locator(".cells .done")).to_have_count(64)
    expect(page.get_by_alt_text("half drawn")).to_be_hidden()
    answer.happen(DrawingProgress(0, 4, 10, picture(BLUE)))
    expect(page.get_by_alt_text("half drawn")).to_be_visible()

    answer.happen(*drawn())
    answer.finish()
    expect(page.get_by_alt_text("Picture 1, drawn by the model")).to_be_visible()
    expect(bar).to_be_hidden()
    expect(page.locator(".cells")).to_be_hidden()
    parts = page.locator(".body > *")
    kinds = parts.evaluate_all("all => all.map(each => each.tagName)")
    assert kinds == ["P", "FIGURE", "P"]
    expect(parts.nth(2)).to_have_text("After.")


def test_pictures_of_one_answer_keep_their_places_whichever_is_drawn_first(page, puppet):
    ask(page)
    answer = puppet.next()
    for number in (0, 1):
        answer.write(f"Number {number}:")
        answer.happen(ImageStarted(number, 4), ImageProgress(number, 4, 4))
    answer.happen(*drawn(BLUE, number=1))
    expect(page.get_by_alt_text("Picture 2, drawn by the model")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Picture 1")).to_be_visible()
    answer.happen(*drawn(RED, number=0))
    answer.finish()
    pictures = page.get_by_alt_text("drawn by the model")
    expect(pictures).to_have_count(2)
    ended(page)
    for place, colour in enumerate((RED, BLUE)):
        data = pictures.nth(place).get_attribute("src").split(",")[1]
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert shown.convert("RGB").getpixel((0, 0)) == colour
    kinds = page.locator(".body > *").evaluate_all("all => all.map(each => each.tagName)")
    assert kinds == ["P", "FIGURE", "P", "FIGURE"]


def test_redrawing_keeps_both_and_pages_through_them(page, puppet):
    answered(page, puppet)
    image = page.get_by_alt_text("Picture 1, drawn by the model")
    first = image.get_attribute("src")
    expect(button(page, "Next drawing")).to_be_hidden()
    with page.expect_request("**/v1/metamorph/redraw") as request:
        button(page, "Redraw").click()
    assert request.value.post_data_json["image_url"] == first
    assert 0 <= request.value.post_data_json["seed"] < SEEDS
    expect(page.locator(".place")).to_have_text("2 of 2")
    second = image.get_attribute("src")
    assert first != second
    button(page, "Drawing before").click()
    expect(image).to_have_attribute("src", first)
    expect(button(page, "Drawing before")).to_be_disabled()
    button(page, "Next drawing").click()
    expect(image).to_have_attribute("src", second)


def test_what_the_model_sees_stands_beside_what_was_sent(page, puppet):
    page.set_input_files("#files", file("a.png"))
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    answered(page, puppet)
    button(page, "What the model sees").click()
    view = page.get_by_alt_text("What the model sees of picture 1")
    sent = page.get_by_alt_text("Picture 1, sent by you")
    expect(view).to_be_visible()
    assert view.bounding_box()["y"] == sent.bounding_box()["y"]
    button(page, "What the model sees").click()
    expect(view).to_be_hidden()


def test_without_a_decoder_nothing_is_offered_to_be_drawn(page, puppet):
    model = {"id": "blind", "metamorph": {"draws": False, "image_tokens": 4}}
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [model]}))
    page.reload()
    expect(page.get_by_text("blind")).to_be_visible()
    page.set_input_files("#files", file("a.png"))
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    ask(page)
    answer = puppet.next()
    answer.happen(ImageStarted(0, 4), ImageProgress(0, 4, 4))
    answer.finish()
    expect(answers(page).get_by_text("predicted, but not drawn")).to_be_visible()
    expect(page.get_by_alt_text("Picture 1, sent by you")).to_be_visible()
    expect(button(page, "What the model sees")).to_be_hidden()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_is_stopped_and_what_there_is_stays(page, puppet, way):
    ask(page)
    answer = puppet.next()
    answer.write("So far")
    answer.happen(ImageStarted(0, 16), ImageProgress(0, 5, 16))
    expect(page.locator(".cells .done")).to_have_count(5)
    if way == "button":
        button(page, "Stop the answer").click()
    else:
        field(page).press("Escape")
    ended(page)
    for words in ("5 of 16 tokens", "Stopped."):
        expect(answers(page).get_by_text(words)).to_be_visible()
    ask(page, "And now?")
    following = puppet.next()
    following.finish()
    assert answer.cancelled.wait(PATIENCE)
    assert [message.text for message in following.messages] == [
        "Draw a circle.", "So far", "And now?",
    ]  # fmt: skip


def test_a_turn_without_an_answer_is_left_out_of_later_ones(page, puppet):
    ask(page, "First")
    puppet.next()
    button(page, "Stop the answer").click()
    expect(answers(page)).to_contain_text("later turns leave this one out")
    ask(page, "Second")
    answer = puppet.next()
    answer.finish()
    assert [message.text for message in answer.messages] == ["Second"]


def test_the_last_question_is_edited_and_sent_again(page, puppet):
    answered(page, puppet, "One")
    page.set_input_files("#files", file("a.png"))
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    answered(page, puppet, "Too")
    expect(button(page, "Edit question")).to_have_count(1)  # only that of the last one
    field(page).fill("a draft")
    button(page, "Edit question").click()
    expect(field(page)).to_have_value("Too")
    field(page).press("Escape")
    expect(field(page)).to_have_value("a draft")

    field(page).fill("")
    field(page).press("ArrowUp")
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    ask(page, "Two")
    answer = puppet.next()
    answer.finish()
    assert [message.text for message in answer.messages] == ["One", "Here.", "Two"]
    assert len(answer.messages[2].parts) == 2
    expect(page.get_by_role("article", name="Question")).to_have_count(2)


def test_an_answer_is_tried_again_undone_and_brought_back(page, puppet):
    answered(page, puppet)
    button(page, "Edit question").click()
    button(page, "Try again").click()  # it ends the editing
    expect(field(page)).to_have_value("")
    puppet.next().finish()
    ended(page)
    expect(answers(page)).to_have_count(1)
    button(page, "Undo").click()
    expect(answers(page)).to_have_count(0)
    expect(page.get_by_text("Ask, show, or ask for a picture")).to_be_visible()
    button(page, "Bring back").click()
    expect(answers(page)).to_have_count(1)


def test_a_new_conversation_begins_with_nothing_and_stops_the_old_one(page, puppet):
    ask(page, "Old")
    old = puppet.next()
    page.get_by_role("button", name="New").click()
    ended(page)
    expect(answers(page)).to_have_count(0)
    ask(page, "Fresh")
    answer = puppet.next()
    answer.finish()
    assert old.cancelled.wait(PATIENCE)
    assert [message.text for message in answer.messages] == ["Fresh"]


@pytest.mark.parametrize("way", ["clipboard", "command"])
def test_text_is_copied_and_pictures_are_saved(open_page, puppet, way):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    if way == "command":  # browsers give pages of plain http no clipboard
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: null})")
    answered(page, puppet, text="To be copied.")
    button(page, "Copy").click()
    expect(button(page, "Copied")).to_be_visible()
    field(page).press("Control+V")
    expect(field(page)).to_have_value("To be copied.")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    assert re.fullmatch(r"metamorph-1-\d+\.png", download.value.suggested_filename)
    assert Image.open(download.value.path()).convert("RGB").getpixel((0, 0)) == RED
