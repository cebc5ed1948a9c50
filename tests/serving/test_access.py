"""Nobody reaches a server by mistake."""

import pytest

from metamorph.errors import UserError
from metamorph.serving.access import VARIABLE, door_of, is_loopback

TOKEN = "a-token-of-letters"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_this_machine_needs_no_token_and_answers_by_its_own_names(host):
    assert is_loopback(host)
    door = door_of(host, names=["Proxy.example"])
    assert not door.token
    shown = f"[{host}]" if ":" in host else host.lower()
    assert door.names == {"localhost", "127.0.0.1", "[::1]", shown, "proxy.example"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "example.org", "10.0.0.1"])
def test_other_machines_need_one(host, monkeypatch):
    with pytest.raises(UserError, match="--no-token"):
        door_of(host)
    assert door_of(host, without_token=True).token == ""
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert door_of(host).token == TOKEN
    assert door_of(host).names == frozenset()


def test_a_file_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "another-token-of-letters")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert door_of("0.0.0.0", token_file=file).token == TOKEN


@pytest.mark.parametrize(
    "content", ["", "short", "two words of a token", "line\nline of a token", "é" * 20]
)
def test_what_is_no_token(content, tmp_path):
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(UserError, match=f"--token-file {file}"):
        door_of("127.0.0.1", token_file=file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        door_of("127.0.0.1", token_file=tmp_path / "token")


def test_a_token_and_none_at_once(monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)
    with pytest.raises(UserError, match=f"{VARIABLE}; expected one or the other"):
        door_of("0.0.0.0", without_token=True)
