"""Two servers behind nginx, by the configuration that the page shows."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.pages import blocks
from tests.serving.exchanges import CHAT, SECONDS, ask, events, exchanges, going_on, questions
from tests.serving.load import Tally, clients_at_work
from tests.serving.server_process import (
    ROOT,
    ServerProcess,
    free_port,
    server_processes,
    write_model,
)

CONF = ROOT / "examples/serving/nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


@dataclass
class Balancer:
    address: str
    folder: Path

    def log(self) -> str:
        return (self.folder / "access.log").read_text()

    def servers(self, conversation: str, requests: int) -> Counter:
        """Which servers answered so many requests of a conversation. A line is written after its
        answer."""
        for _ in range(100):
            fields = [line.split() for line in self.log().splitlines()]
            found = Counter(f"http://{one[-4]}" for one in fields if one[-1] == conversation)
            if found.total() >= requests:
                return found
            time.sleep(0.05)
        raise AssertionError(self.log())


@contextmanager
def balanced(servers: list[ServerProcess], folder: Path):
    """nginx before servers, as in the example but for the ports."""
    folder.mkdir()
    port = free_port()
    text = CONF.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    for shown, server in zip(("127.0.0.1:8001", "127.0.0.1:8002"), servers, strict=True):
        text = text.replace(shown, server.address.removeprefix("http://"))
    (folder / "nginx.conf").write_text(text)
    command = [NGINX, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"]
    if os.geteuid() == 0:  # the folder of a test is for its own user
        command += ["-g", "user root;"]
    with (folder / "nginx.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        found = Balancer(f"http://127.0.0.1:{port}", folder)
        wait_for(found)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for(balancer: Balancer) -> None:
    for _ in range(100):
        try:
            httpx.get(f"{balancer.address}/healthz").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError((balancer.folder / "nginx.log").read_text())


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Two servers of one model, and the balancer before them."""
    folder = tmp_path_factory.mktemp("replicas")
    model = write_model(folder)
    with (
        server_processes(model, folder, 2) as servers,
        balanced(servers, folder / "nginx") as balancer,
    ):
        yield servers, balancer


@pytest.fixture(scope="module")
def conversations(replicas):
    """For each server the name of a conversation that it gets."""
    servers, balancer = replicas
    found: dict[str, str] = {}
    for number in range(100):
        name = f"conversation-{number}"
        headers = {"X-Conversation": name}
        httpx.get(f"{balancer.address}/v1/models", headers=headers).raise_for_status()
        (address,) = balancer.servers(name, 1)
        found.setdefault(address, name)
        if len(found) == len(servers):
            return found
    raise AssertionError(found)


def test_the_page_shows_the_configuration_that_is_run():
    (shown,) = blocks(ROOT / "docs/serving.md", "nginx")
    lines = {line.strip() for line in CONF.read_text().splitlines()}
    assert {line.strip() for line in shown.splitlines() if line.strip()} <= lines


def test_turns_of_a_conversation_go_to_one_server(replicas, conversations):
    servers, balancer = replicas
    for address, name in conversations.items():
        with httpx.Client(base_url=balancer.address, headers={"X-Conversation": name}) as client:
            for _ in range(5):
                client.get("/v1/models").raise_for_status()
        assert set(balancer.servers(name, 6)) == {address}


def test_a_picture_is_understood_by_a_server_that_did_not_draw_it(replicas, conversations):
    servers, balancer = replicas
    one, other = conversations.values()
    with httpx.Client(base_url=balancer.address, timeout=SECONDS) as client:
        for body in questions(40):
            reply = client.post(CHAT, json=body, headers={"X-Conversation": one}).json()
            message = reply["choices"][0]["message"]
            if isinstance(message["content"], list):
                break
        else:
            pytest.fail("no answer has a picture")
        second = going_on(body, message)
        answers = [ask(client, second, headers={"X-Conversation": name}) for name in (one, other)]
        assert answers[0] == answers[1] and answers[0].text


def test_events_come_one_by_one(replicas):
    servers, balancer = replicas
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400, "stream": True}
    body["max_images"] = 0
    with httpx.stream("POST", balancer.address + CHAT, json=body, timeout=SECONDS) as response:
        arrived, begin = [], time.monotonic()
        for _ in events(response.iter_lines()):
            arrived.append(time.monotonic() - begin)
    assert len(arrived) > 10
    assert arrived[0] < 0.5 * arrived[-1]  # the others were not there yet


def test_a_client_that_goes_away_takes_its_request_with_it(replicas):
    servers, balancer = replicas
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1000, "stream": True}
    with httpx.stream("POST", balancer.address + CHAT, json=body, timeout=SECONDS) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 20
    while any(server.metrics()["metamorph_active_answers"] for server in servers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_errors_have_one_shape(replicas):
    servers, balancer = replicas
    assert httpx.get(f"{balancer.address}/metrics").status_code == 404
    connection = HTTPConnection(balancer.address.removeprefix("http://"))
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Length", str(65 * 2**20))
    connection.endheaders()
    with closing(connection), connection.getresponse() as response:
        assert response.status == 413
        assert json.load(response)["error"]["code"] == "request_too_large"


def test_a_server_stops_in_the_midst_and_no_request_is_lost_or_crossed(replicas):
    """The last one here, for it leaves no server."""
    servers, balancer = replicas
    known, tally = exchanges(servers[0].address, questions(24)), Tally()
    with clients_at_work(balancer.address, known, tally, 8, {"ask": 1, "stream": 1}):
        wait_for_answers(tally, 40)
        seen = balancer.log()
        assert servers[0].stop() == 0  # it has finished what it had
        wait_for_answers(tally, 40)
    assert not tally.faults, "\n".join(tally.faults)
    assert set(tally.done) == {"ask", "stream"}
    assert all(f"{server.address.removeprefix('http://')} " in seen for server in servers)

    assert servers[1].stop() == 0
    nobody = httpx.post(balancer.address + CHAT, json=known[0].body)
    assert nobody.status_code == 503 and nobody.json()["error"]["code"] == "no_server"
    assert int(nobody.headers["Retry-After"]) > 0


def wait_for_answers(tally: Tally, more: int) -> None:
    """Until so many more have come, or something has gone wrong."""
    goal, deadline = len(tally.seconds) + more, time.monotonic() + SECONDS
    while len(tally.seconds) < goal and not tally.faults and time.monotonic() < deadline:
        time.sleep(0.05)
