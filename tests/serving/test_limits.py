"""More than there is place or time for is refused, and leaves nothing behind."""

import contextlib
import threading
import time

import httpx
import pytest
from openai import APIError, APIStatusError, OpenAI

from metamorph.errors import UserError
from metamorph.serving import service
from metamorph.serving.limits import Limits, Places
from tests.serving.running import running
from tests.serving.scripted import CRASH, FAIL, HOLD, ScriptedAssistant
from tests.serving.scripted_server import asked, chat, client_of, error_of, scripted_app

PATIENCE = 10.0


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def held(client: httpx.Client, text: str = HOLD, **fields):
    """An answer that goes on while this is entered."""
    body = asked(text, stream=True, **fields)
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        yield answer


def test_a_full_queue_refuses_with_429_and_says_when_to_come_again():
    assistant = ScriptedAssistant(slots=1)
    with client_of(scripted_app(assistant, limits=Limits(queue=2))) as client:
        with held(client), held(client), held(client):
            answer = chat(client, "hello")
            assert answer.status_code == 429
            assert error_of(answer)["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/healthz").status_code == 200
        until(lambda: not assistant.active and not assistant.waiting)
        assert chat(client, "hello").status_code == 200
        with held(client):
            assert chat(client, "hello", n=3).status_code == 429  # each takes a place
        text = client.get("/metrics").text
    assert 'metamorph_refused_total{reason="queue_full"} 2.0' in text


def test_no_more_answers_are_asked_for_than_there_are_places():
    with client_of(scripted_app(ScriptedAssistant(slots=1), limits=Limits(queue=1))) as client:
        assert error_of(chat(client, "hello", n=3))["param"] == "n"
        assert len(chat(client, "hello", n=2).json()["choices"]) == 2


def test_there_is_room_for_so_many_bytes_of_all_requests():
    with client_of(scripted_app(limits=Limits(body=2000, bodies=3000))) as client:
        filler = "x" * 1500
        with held(client, f"{HOLD} {filler}"):
            answer = chat(client, filler)
            assert answer.status_code == 429
            assert chat(client, "hello").status_code == 200
        until(lambda: chat(client, filler).status_code == 200)


def test_who_waits_hears_of_it_now_and_then(monkeypatch):
    monkeypatch.setattr(service, "BEAT_SECONDS", 0.02)
    with client_of(scripted_app(ScriptedAssistant(slots=1))) as client:
        with held(client), held(client, "hello") as waiting:
            lines = waiting.iter_lines()
            assert ": waiting" in (next(lines) for _ in range(20))
        assert chat(client, "hello").status_code == 200


def test_an_answer_that_takes_too_long_is_ended():
    assistant = ScriptedAssistant()
    with client_of(scripted_app(assistant, limits=Limits(seconds=0.15))) as client:
        answer = chat(client, HOLD)
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "timeout"
        with held(client) as streamed:
            *_, error, done = [line for line in streamed.iter_lines() if line]
        assert '"code": "timeout"' in error and done == "data: [DONE]"
        until(lambda: not assistant.active)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_not_answered(stream):
    assistant = ScriptedAssistant(slots=1)
    with client_of(scripted_app(assistant)) as client:
        with contextlib.suppress(httpx.ReadTimeout):
            body = asked(HOLD, stream=stream)
            with client.stream("POST", "/v1/chat/completions", json=body, timeout=0.2) as answer:
                next(answer.iter_lines())
        until(lambda: not assistant.active and not assistant.waiting)
        assert chat(client, "hello").status_code == 200


def test_a_failed_answer_is_an_error_streamed_or_not():
    app = scripted_app()
    with running(app) as url, OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        body = asked(FAIL, model="scripted")
        with pytest.raises(APIStatusError) as error:
            client.chat.completions.create(**body)
        assert error.value.status_code == 500 and error.value.code == "answer_failed"
        with pytest.raises(APIError, match="not finite"):
            list(client.chat.completions.create(**body, stream=True))


def test_a_crash_of_the_engine_is_told_to_everybody():
    with client_of(scripted_app()) as client:
        answers = []
        others = [
            threading.Thread(target=lambda: answers.append(chat(client, HOLD))) for _ in range(2)
        ]
        for other in others:
            other.start()
        until(lambda: "metamorph_active_answers 2.0" in client.get("/metrics").text)
        answers.append(chat(client, CRASH))
        for other in others:
            other.join()
        assert [answer.status_code for answer in answers] == [500] * 3
        assert {error_of(answer)["code"] for answer in answers} == {"engine_failed"}
        for later in (client.get("/healthz"), chat(client, "hello")):
            assert later.status_code == 503
            assert error_of(later)["code"] == "engine_failed"
        assert client.get("/metrics").status_code == 200


def test_places_come_back():
    places = Places(3)
    assert places.take(2) and not places.take(2) and places.take(1)
    places.give_back(3)
    assert places.free == 3


@pytest.mark.parametrize("field", ["body", "seconds", "queue", "tokens"])
def test_a_limit_is_never_below_zero(field):
    with pytest.raises(UserError, match=field):
        Limits(**{field: -1})
