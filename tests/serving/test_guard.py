"""Who is let in, what of a request is looked at first, and the form of every refusal."""

import http.client
import json
import logging

import pytest

from metamorph.serving.guard import LOOPBACK_NAMES, Door
from metamorph.serving.limits import Limits
from tests.serving.scripted import TRIP
from tests.serving.scripted_server import asked, chat, client_of, error_of, scripted_app

TOKEN = "a-token-of-letters"
ROUTES = ("/v1/chat/completions", "/v1/images/generations", "/v1/metamorph/seen", "/v1/models")


@pytest.fixture(scope="module")
def guarded():
    door = Door(token=TOKEN, names=LOOPBACK_NAMES)
    with client_of(scripted_app(door=door)) as client:
        yield client


@pytest.fixture(scope="module")
def small():
    limits = Limits(body=1000, body_seconds=0.2)
    with client_of(scripted_app(limits=limits)) as client:
        yield client


@pytest.mark.parametrize("route", (*ROUTES, "/metrics", "/v1/nothing"))
@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer é"])
def test_nothing_without_the_token(guarded, route, given):
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    answer = guarded.post(route, json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer)["code"] == "invalid_api_key"


def test_with_the_token(guarded):
    right = {"authorization": f"bearer {TOKEN}"}
    assert guarded.get("/v1/models", headers=right).status_code == 200
    answer = guarded.post("/v1/chat/completions", json=asked("hello"), headers=right)
    assert answer.json()["choices"][0]["message"]["content"] == "You said: hello "


@pytest.mark.parametrize("route", ["/", "/page.js", "/healthz"])
def test_the_page_and_the_state_need_no_token(guarded, route):
    assert guarded.get(route).status_code == 200


def test_a_balancer_may_ask_for_the_head_alone(guarded):
    assert guarded.head("/healthz").status_code == 200


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example:80", "", "127.0.0.1.nip.io"]
)
@pytest.mark.parametrize("route", ["/", "/healthz", "/v1/models"])
def test_a_name_that_is_not_the_servers_is_refused(guarded, name, route):
    answer = guarded.get(route, headers={"host": name, "authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"]
)
def test_names_of_this_machine(guarded, name):
    assert guarded.get("/healthz", headers={"host": name}).status_code == 200


def test_no_other_site_may_read(guarded):
    """CORS is off: a browser asks first, and hears nothing of being allowed."""
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for route in ("/v1/chat/completions", "/healthz"):
        answer = guarded.options(route, headers=headers)
        assert answer.status_code in (401, 405)
        assert not any(name.startswith("access-control") for name in answer.headers)
    answer = guarded.get("/healthz", headers=headers)
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_every_answer_has_security_headers(small):
    for answer in (small.get("/"), small.get("/nothing"), chat(small, "hello"), chat(small, "")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert "server" not in answer.headers


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_only_json_is_read(small, kind):
    """What a page of another site may send without asking is of another kind."""
    headers = {} if kind is None else {"content-type": kind}
    answer = small.post("/v1/chat/completions", content=json.dumps(asked("hi")), headers=headers)
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 900, b'"\\ud800"', b"\xff", b"1" * 900, b"NaN"])
def test_what_is_no_json(small, body):
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = small.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert error_of(answer)["code"] in ("invalid_json", "missing")


def test_a_body_that_is_too_large(small):
    answer = chat(small, "x" * 1000)
    assert answer.status_code == 413
    assert "1000" in error_of(answer)["message"]
    assert chat(small, "x").status_code == 200  # on the same connection


def test_a_body_of_unknown_size_is_measured_as_it_comes(small):
    def pieces():
        for _ in range(100):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    answer = small.post("/v1/chat/completions", content=pieces(), headers=headers)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"


def test_a_body_that_does_not_come(small):
    connection = http.client.HTTPConnection(small.base_url.host, small.base_url.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "50")
    connection.endheaders(b"{")
    answer = connection.getresponse()
    assert answer.status == 408
    assert json.loads(answer.read())["error"]["code"] == "body_too_slow"
    connection.close()


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/page.js/..%2f..%2fapp.py", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/docs", 404),
    ],
)
def test_what_is_not_there(small, method, route, status):
    answer = small.request(method, route)
    assert answer.status_code == status
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("given", ["mine-1.2_3", "a" * 128])
def test_a_sane_id_of_the_client_is_kept(small, given):
    answer = small.get("/healthz", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "two words", 'a"b', "é"])
def test_any_other_id_is_replaced(small, given):
    answer = small.get("/healthz", headers={"x-request-id": given.encode("latin-1")})
    assert len(answer.headers["x-request-id"]) == 32


def test_a_mistake_of_the_program_is_an_error_with_the_id_and_no_more(small, caplog):
    with caplog.at_level(logging.INFO, "metamorph.serving"):
        answer = small.post(
            "/v1/chat/completions", json=asked(TRIP), headers={"x-request-id": "the-id"}
        )
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "mistake" not in answer.text and answer.headers["x-request-id"] == "the-id"
    assert "request the-id failed" in caplog.text and "a mistake of the program" in caplog.text
    assert chat(small, "hello").status_code == 200  # it concerned that request alone


def test_the_log_has_a_line_for_each_request(small, caplog):
    with caplog.at_level(logging.INFO, "metamorph.serving"):
        small.get("/no%0Athing", headers={"x-request-id": "the-id"})
        small.get("/healthz")  # by then the line of the one before it is there
    [line] = [line for line in caplog.messages if line.endswith(" s the-id")]
    assert line.startswith("GET /no\\nthing 404 ")
