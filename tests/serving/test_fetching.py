"""Pictures are fetched from the hosts of the list, and from nowhere else."""

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metamorph.errors import UserError
from metamorph.serving import fetching
from metamorph.serving.fetching import Fetcher, is_public
from metamorph.serving.refusals import Refused

CERTIFICATE = Path(__file__).with_name("self_signed.pem")  # of pictures.example and more.example
CONTENT = b"a picture" * 100


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, argument = self.path.partition("?")
        if path == "/redirect":
            self.answer(302, b"", location=argument)
        elif path == "/slow":
            self.answer(200, b"", length=10**6)
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b"x")
        elif path == "/cut":
            self.answer(200, CONTENT, length=10**6)
        elif path == "/missing":
            self.answer(404, b"")
        else:
            self.answer(200, CONTENT)

    def answer(self, status: int, content: bytes, length: int | None = None, location=""):
        self.send_response(status)
        self.send_header("content-length", str(len(content) if length is None else length))
        if location:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Of clients that hang up, which is what some tests are about."""


@pytest.fixture(scope="module")
def port():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(port, monkeypatch):
    """Of `https://pictures.example:port`, which stands for this machine here."""
    monkeypatch.setattr(fetching, "_public_address", lambda host, port, param: "127.0.0.1")
    fetcher = Fetcher([f"pictures.example:{port}"], seconds=0.5)
    fetcher.context = ssl.create_default_context(cafile=str(CERTIFICATE))

    def fetch(path: str, most_bytes: int = 10_000) -> bytes:
        return fetcher.fetch(f"https://pictures.example:{port}{path}", most_bytes, "image")

    return fetch


def test_what_stands_there(fetch):
    assert fetch("/a.png?b=c") == CONTENT
    assert fetch("") == CONTENT


def test_a_host_may_send_on_to_itself(fetch, port):
    assert fetch("/redirect?/a.png") == CONTENT
    assert fetch(f"/redirect?https://PICTURES.example:{port}/a.png") == CONTENT


@pytest.mark.parametrize(
    "target",
    [
        "https://127.0.0.1/a", "http://pictures.example:{port}/a", "https://more.example:{port}/a",
        "file:///etc/passwd", "https://pictures.example/a", "//evil.example/a",
        "https://user@pictures.example:{port}/a", "/redirect?/redirect?/redirect?/redirect?/a",
    ],
)  # fmt: skip
def test_it_may_not_send_elsewhere(fetch, port, target):
    with pytest.raises(Refused) as refused:
        fetch("/redirect?" + target.format(port=port))
    assert refused.value.param == "image"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/missing", "status 404"), ("/cut", "cut or too slow"), ("/a b", "control characters")],
)
def test_what_cannot_be_fetched(fetch, path, reason):
    with pytest.raises(Refused, match=reason):
        fetch(path)


def test_no_more_than_the_most_bytes(fetch):
    assert fetch("/a", len(CONTENT)) == CONTENT
    with pytest.raises(Refused, match="more than 899 bytes"):
        fetch("/a", len(CONTENT) - 1)


def test_no_longer_than_it_may_take(fetch):
    began = time.monotonic()
    with pytest.raises(Refused, match="cannot be fetched"):
        fetch("/slow", 10**7)
    assert time.monotonic() - began < 3


def test_a_certificate_of_another_name(port, monkeypatch):
    monkeypatch.setattr(fetching, "_public_address", lambda host, port, param: "127.0.0.1")
    fetcher = Fetcher([f"evil.example:{port}"])
    fetcher.context = ssl.create_default_context(cafile=str(CERTIFICATE))
    with pytest.raises(Refused, match="evil.example"):
        fetcher.fetch(f"https://evil.example:{port}/", 100, "image")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "2130706433"])
def test_an_address_of_this_network_is_refused_though_it_is_on_the_list(host):
    with pytest.raises(Refused, match="private network|is not known"):
        Fetcher([host]).fetch(f"https://{host}/", 100, "image")


@pytest.mark.parametrize(
    "host", ["", "a b", "user@example.com", "https://example.com", "a/b", "a:b"]
)
def test_what_is_no_host(host):
    with pytest.raises(UserError, match="--allow-host"):
        Fetcher([host])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1",
        "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "ff02::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"])
def test_addresses_that_are(address):
    assert is_public(address)
