"""The page with a real model, tiny and of random weights: what it answers is what stands there."""

import base64
import io
from itertools import product

import pytest
import torch
from PIL import Image, ImageChops
from playwright.sync_api import expect

from metamorph import Assistant
from metamorph.data.toy.scenes import COLOURS, SHAPES, SIZES
from metamorph.generation.messages import USER, Drawing, Message
from metamorph.generation.picture_files import drawing_of
from metamorph.generation.settings import AnswerSettings, Sampling
from metamorph.model import assemble
from metamorph.serving.app import create_app
from metamorph.serving.served import served_by
from tests.serving.page_hands import answers, ask, button, ended, file, picture
from tests.serving.running import running
from tests.tiny_run import GRID, tiny_decoder, write_language, write_vision

pytestmark = pytest.mark.slow
TOKENS, WIDTH, SEED = 40, 24, 3  # of an answer, of a feature


@pytest.fixture(scope="module")
def assistant(tmp_path_factory) -> Assistant:
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = assemble(
        write_language(folder / "llama"), write_vision(folder / "siglip"), grid=GRID
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():  # large: what is asked matters
        if not name.startswith("vision."):
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
    with torch.no_grad():  # it likes to draw
        model.language.lm_head.weight[model.config.image_start_id] *= 3
    return Assistant(model, tokenizer, tiny_decoder(WIDTH))


@pytest.fixture(scope="module")
def asked(assistant):
    """A picture and a question which the model answers with a picture, and the answer."""
    settings = AnswerSettings(max_new_tokens=TOKENS, sampling=Sampling(seed=SEED))
    sent = picture(side=64)
    for size, colour, shape in product(SIZES, COLOURS, SHAPES):
        question = f"Generate an image of a {size} {colour} {shape}."
        [reply] = assistant.generate([[Message(USER, (sent, question))]], settings)
        if reply.pictures:
            return sent, question, reply
    pytest.fail("the model of this test never draws")


@pytest.fixture(scope="module")
def address(assistant, asked):  # once the engine has a thread, nobody else may ask the assistant
    served = served_by(assistant, "tiny", "Draw {prompt}.")
    with running(create_app(assistant, served, decoder=assistant.decoder)) as address:
        yield address


def own(url: str) -> Drawing | None:
    return drawing_of(base64.b64decode(url.split(",")[1]), GRID**2, WIDTH, 2**20)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest of any pixel, of 255."""
    apart = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    return max(most for _, most in apart.getextrema())


def test_upload_ask_draw_edit_and_redraw(page, asked):
    sent, question, reply = asked
    button(page, "Settings").click()
    page.get_by_label("Max tokens").fill(str(TOKENS))
    page.get_by_label("Seed").fill(str(SEED))
    button(page, "Done").click()

    page.set_input_files("#files", file("sent.png", sent))
    expect(page.get_by_alt_text("To send")).to_have_count(1)
    ask(page, question)
    images = answers(page).get_by_alt_text("drawn by the model")
    expect(images).to_have_count(len(reply.pictures))
    ended(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    words = " ".join(answers(page).locator(".text").all_inner_texts())
    assert words.split() == reply.text.split()
    first = images.first.get_attribute("src")
    drawing = own(first)
    torch.testing.assert_close(drawing.features, reply.features[0], atol=1e-3, rtol=0)
    assert difference(drawing.picture, reply.pictures[0]) <= 2

    ask(page, "Make it red.")  # the next turn reads that picture
    expect(answers(page)).to_have_count(2)
    ended(page)
    expect(page.get_by_role("alert")).to_have_count(0)

    button(page, "Redraw").first.click()
    expect(page.locator(".place").first).to_have_text("2 of 2")
    again = own(images.first.get_attribute("src"))
    assert torch.equal(again.features, drawing.features)
    assert difference(again.picture, drawing.picture) > 2

    button(page, "What the model sees").click()
    view = page.get_by_alt_text("What the model sees of picture 1")
    expect(view).to_be_visible()
    data = view.get_attribute("src").split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == reply.pictures[0].size
