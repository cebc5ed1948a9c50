"""How the server stops, and clients that do not let go."""

import contextlib
import os
import signal
import socket
import threading
import time

import httpx
import pytest

from metamorph.errors import UserError
from metamorph.serving.limits import Limits
from metamorph.serving.server import bound
from metamorph.signals import ECHO_SECONDS
from tests.serving.running import serving
from tests.serving.scripted import HOLD, ScriptedAssistant
from tests.serving.scripted_server import asked, chat, error_of, scripted_app
from tests.serving.test_limits import held, until


@contextlib.contextmanager
def server_of(app, grace: float = 0.0):
    with serving(app, grace) as (url, server):
        with httpx.Client(base_url=url, timeout=20) as client:
            yield client, server


def test_who_is_answered_may_finish_and_others_are_refused():
    assistant = ScriptedAssistant()
    with server_of(scripted_app(assistant), grace=30) as (client, server):
        with held(client):
            until(lambda: assistant.active)
            server.stop()
            for answer in (chat(client, "hello"), client.get("/healthz")):
                assert answer.status_code == 503
                assert error_of(answer)["code"] == "stopping"
                assert int(answer.headers["retry-after"]) >= 1
            assert not server.should_exit
        until(lambda: server.should_exit)
    with pytest.raises(httpx.ConnectError):
        client_get(client)


def client_get(client: httpx.Client) -> None:
    httpx.get(f"{client.base_url}/healthz")


def test_who_does_not_finish_in_time_is_told():
    assistant = ScriptedAssistant()
    with server_of(scripted_app(assistant), grace=0.2) as (client, server):
        whole = []
        other = threading.Thread(target=lambda: whole.append(chat(client, HOLD)))
        other.start()
        with held(client) as streamed:
            until(lambda: len(assistant.active) == 2)
            server.stop()
            *_, error, done = [line for line in streamed.iter_lines() if line]
        other.join()
        assert '"code": "stopping"' in error and done == "data: [DONE]"
        assert whole[0].status_code == 503 and error_of(whole[0])["code"] == "stopping"


def test_a_server_without_requests_stops_at_once():
    began = time.monotonic()
    with server_of(scripted_app(), grace=60) as (client, _):
        client.get("/healthz")
    assert time.monotonic() - began < 5


def test_a_second_signal_does_not_wait(monkeypatch):
    with server_of(scripted_app(), grace=60) as (client, server), held(client):
        server.handle_exit(signal.SIGTERM)
        server.handle_exit(signal.SIGTERM)  # the same one, passed on twice
        assert not server.force_exit
        server.asked_at -= ECHO_SECONDS
        server.handle_exit(signal.SIGINT)
        assert server.force_exit


def connection_to(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=10)


def test_a_head_that_does_not_come():
    limits = Limits(header_seconds=0.2)
    with server_of(scripted_app(limits=limits)) as (client, _):
        for begun in (b"", b"GET / HTTP/1.1\r\nhost: a\r\nx: "):
            with connection_to(client) as connection:
                connection.sendall(begun)
                began = time.monotonic()
                assert closed(connection)
                assert 0.1 < time.monotonic() - began < 5
        with connection_to(client) as connection:  # nor that of the second request
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            while b"}" not in connection.recv(4096):
                pass
            connection.sendall(b"GET /healthz HT")
            assert closed(connection)


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def test_a_reader_that_takes_nothing_is_cut_off_and_its_answer_cancelled():
    assistant = ScriptedAssistant(slots=8)
    limits = Limits(stall_seconds=0.2)
    with server_of(scripted_app(assistant, limits=limits)) as (client, _):
        with connection_to(client) as connection:
            request = client.build_request(
                "POST", "/v1/chat/completions", json=asked(HOLD, stream=True, n=8)
            )
            head = f"POST {request.url.path} HTTP/1.1\r\nhost: a\r\n"
            head += "content-type: application/json\r\n"
            head += f"content-length: {len(request.content)}\r\n\r\n"
            connection.sendall(head.encode() + request.content)
            until(lambda: assistant.active)
            until(lambda: not assistant.active)
        assert chat(client, "hello").status_code == 200


def test_what_is_no_http_is_told_so_in_json():
    with server_of(scripted_app()) as (client, _), connection_to(client) as connection:
        connection.sendall(b"hello\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'{"error": {"message": "Invalid HTTP request received."' in answer


def test_a_port_that_is_taken_and_a_host_that_is_not_here():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1, port {port}: {os.strerror(98)}"):
            bound("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen on nowhere.invalid"):
        bound("nowhere.invalid", 0)
