"""The files of the page, read as text: they hold together, and hold nothing that they must not."""

import re
from pathlib import Path

import pytest

import metamorph
from metamorph.serving.chat_request import ChatRequest

FOLDER = Path(metamorph.__file__).parent / "serving/page"
FILES = {path.name: path.read_text() for path in FOLDER.iterdir()}
SCRIPTS = "\n".join(text for name, text in FILES.items() if name.endswith(".js"))
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|eval\(|Function\("


def test_every_file_is_reached_from_the_page():
    reached, new = set(), {"index.html"}
    while new:
        reached |= new
        text = "\n".join(FILES[name] for name in new)
        named = re.findall(r'(?:src|href)="([\w.]+)"|from "\./([\w.]+)"', text)
        new = {name for pair in named for name in pair if name} - reached
    assert reached == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name):
    text = FILES[name].replace("xmlns='http://www.w3.org/2000/svg'", "")
    assert not re.search(r"https?:|//\w+\.|@import|url\(", text)
    assert len(text.splitlines()) <= 320


def test_text_never_becomes_markup():
    assert not re.search(MARKUP, SCRIPTS)
    assert not re.search(r"\son\w+=", FILES["index.html"])  # scripts stand in files
    assert "<style" not in FILES["index.html"] and " style=" not in FILES["index.html"]


def test_what_scripts_look_for_is_on_the_page():
    sought = set(re.findall(r'(?:getElementById|\bat)\("([\w-]+)"\)', SCRIPTS))
    ids = re.findall(r'\bid="([\w-]+)"', FILES["index.html"])
    assert len(sought) > 15 and sought <= set(ids)
    assert len(ids) == len(set(ids))


def test_settings_have_the_names_of_the_request():
    panel = FILES["index.html"].split('<dialog id="settings"')[1].split("</dialog>")[0]
    fields = set(re.findall(r'<input name="(\w+)"', panel))
    assert len(fields) == 7 and fields <= set(ChatRequest.model_fields)
