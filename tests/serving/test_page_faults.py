"""What goes wrong is told on the page in words, and nothing gets in."""

import socket
import threading

import pytest
from playwright.sync_api import expect

from tests.serving.page_hands import CHAT, DONE, HALF, answered, answers, ask, button, ended, stream
from tests.serving.puppet import PATIENCE

pytestmark = pytest.mark.slow


def refusal(status: int, message: str, **headers) -> dict:
    error = {"message": message, "type": "x", "param": None, "code": None}
    return {"status": status, "json": {"error": error}, "headers": headers}


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (None, "The server cannot be reached."),
        (refusal(400, "top_p: expected less"), "top_p: expected less."),
        (refusal(413, "the body is too large"), "more than the server takes. The body is too"),
        (refusal(429, "busy", **{"retry-after": "7"}), "is busy. Try again in 7 seconds."),
        (refusal(429, "busy"), "is busy. Try again in a moment."),
        (refusal(503, "the server is stopping"), "not ready. The server is stopping. Try again"),
        ({"status": 502, "body": "<h1>Bad Gateway</h1>"}, "The server failed (502)."),
        (stream(HALF, 'data: {"error": {"message": "it broke"}}\n\n', DONE), "It broke."),
        (stream(HALF), "The connection broke off before the answer was complete."),
        ({"body": "<p>hello</p>", "content_type": "text/html"}, "no MetaMorph server"),
    ],
)
def test_errors_are_told_in_words(page, puppet, response, words):
    def answer(route):
        route.fulfill(**response) if response else route.abort("connectionrefused")

    page.route(CHAT, answer)
    ask(page, "Draw it.")
    expect(page.get_by_role("alert")).to_contain_text(words)
    page.unroute(CHAT)
    button(page, "Try again").click()
    puppet.next().finish()
    ended(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_line_that_breaks_within_an_answer_is_told(page):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    shown = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def break_off():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(head + f"\r\n{len(HALF):x}\r\n{HALF}\r\n".encode())
                shown.wait(PATIENCE)

        thread = threading.Thread(target=break_off)
        thread.start()
        elsewhere = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        page.route(CHAT, lambda route: route.continue_(url=elsewhere))
        ask(page)
        expect(answers(page)).to_contain_text("Half")
        shown.set()
        expect(page.get_by_role("alert")).to_contain_text("The connection broke off")
        thread.join()


def test_a_redrawing_that_fails_is_told_beside_its_picture(page, puppet):
    answered(page, puppet)
    page.route("**/redraw", lambda route: route.fulfill(**refusal(400, "no features in it")))
    button(page, "Redraw").click()
    expect(page.locator("figure").get_by_role("alert")).to_have_text("No features in it.")
    expect(button(page, "Redraw")).to_be_enabled()


def test_no_address_but_of_pictures_is_ever_shown(page):
    outside = "https://example.org/x.png"
    image = {"type": "image_url", "index": 0, "image_url": {"url": outside}}
    event = f'data: {{"choices": [{{"delta": {{"images": [{image}]}}}}]}}\n\n'.replace("'", '"')
    page.route(CHAT, lambda route: route.fulfill(**stream(event, DONE)))
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("a picture that this page does not show")
    assert page.locator(f"[src='{outside}'], [href='{outside}']").count() == 0


def test_a_token_is_asked_for_and_kept_for_this_tab_only(open_page, puppet):
    page = open_page()

    def guarded(route):
        right = route.request.headers.get("authorization") == "Bearer right"
        route.continue_() if right else route.fulfill(**refusal(401, "no token"))

    page.route("**/v1/**", guarded)
    page.reload()
    dialog = page.get_by_role("dialog", name="Access token")
    for token, reason in (("wrong", "asks for a token"), ("right", "does not accept")):
        expect(dialog).to_contain_text(reason)
        dialog.get_by_label("Token").fill(token)
        dialog.get_by_label("Token").press("Enter")
    expect(dialog).to_be_hidden()
    answered(page, puppet)
    expect(answers(page)).to_contain_text("Here.")
    kept = page.evaluate("[sessionStorage, localStorage].map((each) => JSON.stringify(each))")
    assert "right" in kept[0] and "right" not in kept[1] + page.url
    assert not page.context.cookies()
