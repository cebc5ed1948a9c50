"""What Prometheus reads."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.scripted import FAIL, TOKENS, ScriptedAssistant
from tests.serving.scripted_server import asked, chat, client_of, scripted_app
from tests.serving.test_limits import held, until


@pytest.fixture
def client():
    with client_of(scripted_app(ScriptedAssistant(slots=2))) as client:
        yield client


def read(client) -> dict[tuple[str, ...], float]:
    """By name and values of labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name.removeprefix("metamorph_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_answers_are_counted(client):
    chat(client, "an image")
    chat(client, "hello", n=2)
    values = read(client)
    assert values["tokens_total", "prompt"] == 2 + 2 * 1
    assert values["tokens_total", "answer"] == 4 + TOKENS + 2 * 3
    assert values["tokens_total", "cached"] == 0
    assert values["images_total",] == 1
    route = "/v1/chat/completions"
    assert values["requests_total", route, "200"] == 2
    assert values["request_seconds_count", route] == 2
    assert values["time_to_first_token_seconds_count",] == 2
    assert values["process_resident_memory_bytes",] > 0


def test_refusals_are_counted_by_their_reason(client):
    client.get("/nothing")
    chat(client, "x", temperature=-1)
    chat(client, FAIL)
    assert chat(client, FAIL, stream=True).status_code == 200
    values = read(client)
    assert values["refused_total", "not_found"] == 1
    assert values["refused_total", "greater_than_equal"] == 1
    assert values["refused_total", "answer_failed"] == 2
    assert values["requests_total", "other", "404"] == 1
    assert values["requests_total", "/v1/chat/completions", "400"] == 1


def test_queue_and_slots_are_told_as_they_are(client):
    with held(client), held(client), held(client):
        until(lambda: read(client)["queue_length",] == 1)
        values = read(client)
        assert (values["active_answers",], values["slots",]) == (2, 2)
        assert values["batch_occupancy",] == 1
    until(lambda: read(client)["batch_occupancy",] == 0)


def test_paths_that_do_not_exist_make_no_series_of_their_own(client):
    for number in range(5):
        client.get(f"/nothing/{number}")
        client.post(f"/v1/models/{number}", json=asked("x"))
    routes = {key[1] for key in read(client) if key[0] == "requests_total"}
    assert client.post("/v1/chat/completions", content=b"").status_code == 415
    assert read(client)["requests_total", "/v1/chat/completions", "415"] == 1
    assert routes <= {"other", "/v1/models/{name:path}", "/metrics"}
