"""What the page sends: text, pictures however they came, settings, and the model's own drawings."""

import base64
import io

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Drawing
from tests.serving.page_hands import (
    BLUE,
    CHAT,
    RED,
    answered,
    ask,
    button,
    ended,
    field,
    file,
    picture,
)
from tests.serving.scripted import features_of

pytestmark = pytest.mark.slow
SEEDS = 2**31  # of the page


def test_pictures_are_sent_and_the_models_own_come_back_at_their_place(page, puppet):
    page.set_input_files("#files", [file("a.png"), file("b.png", picture(BLUE))])
    expect(page.get_by_alt_text("To send")).to_have_count(2)
    first = answered(page, puppet, "What are these?", "Two.")
    one, other, text = first.messages[-1].parts
    assert (one.getpixel((0, 0)), other.getpixel((0, 0)), text) == (RED, BLUE, "What are these?")
    expect(page.get_by_alt_text("To send")).to_have_count(0)

    ask(page, "Now edit it.")
    second = puppet.next()
    second.finish()
    assert [message.role for message in second.messages] == [USER, ASSISTANT, USER]
    text, own = second.messages[1].parts
    assert text == "Two." and isinstance(own, Drawing)
    torch.testing.assert_close(own.features, features_of(seed=0), atol=1e-3, rtol=0)
    assert second.messages[2].text == "Now edit it."


def test_a_picture_alone_can_be_sent(page, puppet):
    field(page).press("Enter")  # nothing is there yet
    page.set_input_files("#files", file("a.png"))
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    field(page).press("Enter")
    answer = puppet.next()
    answer.finish()
    assert len(answer.messages) == 1 and len(answer.messages[0].parts) == 1


def test_pictures_come_by_paste_and_by_drop_and_can_be_removed(page):
    for event, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """async ([event, holder, data]) => {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt());
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], "it.png", {type: "image/png"}));
                const made = new (event === "paste" ? ClipboardEvent : DragEvent)(
                    event, {[holder]: transfer, bubbles: true, cancelable: true});
                document.getElementById("text").dispatchEvent(made);
            }""",
            [event, holder, base64.b64encode(file("it.png")["buffer"]).decode()],
        )
    expect(page.get_by_alt_text("To send")).to_have_count(2)
    button(page, "Remove picture 1").click()
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    expect(field(page)).to_be_focused()


def test_what_is_no_picture_is_named(page):
    page.set_input_files(
        "#files", [{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no"}, file("a.png")]
    )
    expect(page.get_by_role("alert")).to_have_text(
        "No picture that this browser can read: notes.txt."
    )
    expect(page.get_by_alt_text("To send")).to_have_count(1)


def test_large_pictures_are_sent_smaller(page, puppet):
    noise = Image.effect_noise((1400, 700), 90).convert("RGB")
    sent = file("photo.png", noise, compress_level=0)
    page.set_input_files("#files", sent)
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    with page.expect_request(CHAT) as request:
        ask(page, "What is this?")
    puppet.next().finish()
    url = request.value.post_data_json["messages"][0]["content"][0]["image_url"]["url"]
    kind, data = url.split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (1024, 512)


def test_settings_go_with_every_request_and_stay(page, puppet):
    with page.expect_request(CHAT) as plain:
        ask(page)
    puppet.next().finish()
    ended(page)
    plain = plain.value.post_data_json
    assert 0 <= plain.pop("seed") < SEEDS
    assert plain.keys() == {"messages", "image_previews", "stream", "stream_options"}

    fields = {
        "Temperature": ("temperature", 0.7),
        "Top-p": ("top_p", 0.9),
        "Max tokens": ("max_tokens", 99),
        "Seed": ("seed", 5),
        "Drawing steps": ("image_steps", 12),
        "Guidance": ("image_guidance", 2.5),
        "Preview every": ("image_previews", 3),
    }
    button(page, "Settings").click()
    for label, (_, value) in fields.items():
        page.get_by_label(label).fill(str(value))
    page.get_by_label("System prompt").fill("Be brief.")
    button(page, "Done").click()
    page.reload()
    with page.expect_request(CHAT) as request:
        ask(page)
    answer = puppet.next()
    answer.finish()
    body = request.value.post_data_json
    assert {name: body[name] for name, _ in fields.values()} == dict(fields.values())
    assert answer.messages[0].role == SYSTEM and answer.messages[0].text == "Be brief."


def test_settings_refuse_what_cannot_be_and_escape_changes_nothing(page, puppet):
    button(page, "Settings").click()
    page.get_by_label("Top-p").fill("7")
    button(page, "Done").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    with page.expect_request(CHAT) as request:
        ask(page)
    puppet.next().finish()
    assert "top_p" not in request.value.post_data_json
