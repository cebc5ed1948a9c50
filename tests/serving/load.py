"""Clients of a server, well-behaved and not; each checks that what it gets is its own."""

import json
import math
import random
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.serving.exchanges import CHAT, SECONDS, Exchange, answer_of, events, streamed

BODY_LIMIT = 32 * 2**20  # bytes, that of the server
MOST_FAULTS = 10


class Busy(Exception):
    """The queue of the server is full; the same may be asked later."""


@dataclass
class Tally:
    """What all clients have seen."""

    done: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of whole answers
    first: list[float] = field(default_factory=list)  # until the first text or visual token of one
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def report(self) -> str:
        def line(name: str, seconds: list[float]) -> str:
            at = [percentile(seconds, share) for share in (0.5, 0.99, 1)]
            return f"{name}: p50 {at[0]:.3f} s, p99 {at[1]:.3f} s, longest {at[2]:.3f} s"

        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.done.items()))
        return "\n".join([kinds, line("answers", self.seconds), line("first token", self.first)])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass
class Client:
    """One client that does things at random, one after another."""

    server: str
    exchanges: Sequence[Exchange]
    tally: Tally
    random: random.Random

    def work(self, over: threading.Event, kinds: dict[str, int]) -> None:
        """Until it is over; of `kinds`, names of methods, each as often as its weight says."""
        names, weights = list(kinds), list(kinds.values())
        with httpx.Client(base_url=self.server, timeout=SECONDS) as self.http:
            while not over.is_set():
                (kind,) = self.random.choices(names, weights)
                outcome = kind
                try:
                    getattr(self, kind)()
                except Busy:
                    outcome = "asked to wait"
                    time.sleep(self.random.uniform(0.1, 0.5))
                except Exception:
                    outcome = "failed"
                    with self.tally.lock:
                        self.tally.faults.append(f"{kind}: {traceback.format_exc(limit=-2)}")
                with self.tally.lock:
                    self.tally.done[outcome] += 1
                    if len(self.tally.faults) >= MOST_FAULTS:
                        return

    def ask(self, exchange: Exchange | None = None) -> None:
        exchange = exchange or self.random.choice(self.exchanges)
        begin = time.monotonic()
        response = self.http.post(CHAT, json=exchange.body)
        self._check(response)
        self._took(begin)
        assert answer_of(response.json()["choices"][0]) == exchange.answer, exchange.body

    def converse(self) -> None:
        """Two turns, of which the second goes on from the first one's cache."""
        first = self.random.choice([one for one in self.exchanges if one.then is not None])
        for turn in (first, first.then):
            self.ask(turn)

    def stream(self, pause: float = 0.0) -> None:
        exchange, begin, first = self.random.choice(self.exchanges), time.monotonic(), []

        def watched(chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            for chunk in chunks:
                deltas = [choice["delta"] for choice in chunk["choices"]]
                if not first and any(d.get("content") or d.get("metamorph") for d in deltas):
                    first.append(time.monotonic() - begin)
                time.sleep(pause)
                yield chunk

        body = exchange.body | {"stream": True}
        with self.http.stream("POST", CHAT, json=body) as response:
            self._check(response)
            assert streamed(watched(events(response.iter_lines()))) == exchange.answer, body
        if not pause:
            self._took(begin)
            with self.tally.lock:
                self.tally.first += first

    def read_slowly(self) -> None:
        self.stream(pause=0.02)

    def leave(self) -> None:
        """Goes away in the midst of a stream; what came until then is the start of the answer."""
        exchange, text = self.random.choice(self.exchanges), ""
        most = self.random.randrange(4)
        body = exchange.body | {"stream": True}
        with self.http.stream("POST", CHAT, json=body) as response:
            self._check(response)
            for number, chunk in enumerate(events(response.iter_lines())):
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                if number >= most:
                    break
        assert exchange.answer.text.startswith(text), exchange.body

    def hang_up(self) -> None:
        """Sends a whole request, or half of one, and is gone before anything comes back."""
        content = json.dumps(self.random.choice(self.exchanges).body).encode()
        head = self._head(f"Content-Length: {len(content)}")
        sent = head + content
        with self._connect() as connection:
            connection.sendall(sent[: self.random.choice((len(head) // 2, len(head), len(sent)))])
            time.sleep(self.random.uniform(0, 0.05))

    def send_too_much(self) -> None:
        """By its own word, or in pieces that never say how many they are."""
        with self._connect() as connection:
            if self.random.random() < 0.9:
                connection.sendall(self._head(f"Content-Length: {BODY_LIMIT + 1}"))
            else:
                connection.sendall(self._head("Transfer-Encoding: chunked"))
                piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
                try:
                    for _ in range(BODY_LIMIT // 2**20 + 1):
                        connection.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    return  # refused before all was sent
            answer = connection.recv(2**16)
            if answer.startswith(b"HTTP/1.1 429 "):
                raise Busy
            assert answer.startswith(b"HTTP/1.1 413 "), answer

    def ask_badly(self) -> None:
        """What cannot be answered is refused in OpenAI's shape, with the field."""
        good = self.random.choice(self.exchanges).body
        wrong, param = self.random.choice(
            [
                ({"temperature": -1}, "temperature"),
                ({"max_tokens": 0}, "max_tokens"),
                ({"messages": []}, "messages"),
                ({"stream": "perhaps"}, "stream"),
                ({"tools": [{"type": "function"}]}, "tools"),
                ({"no_such_field": 1}, "no_such_field"),
            ]
        )
        response = self.http.post(CHAT, json=good | wrong)
        self._check(response, 400)
        assert response.json()["error"]["param"] == param, response.text

    def send_noise(self) -> None:
        """A body that is no JSON."""
        noise = self.random.randbytes(self.random.randrange(1, 2000))
        response = self.http.post(CHAT, content=noise, headers={"Content-Type": "application/json"})
        self._check(response, 400)
        assert response.json()["error"]["message"], response.text

    def _head(self, length: str) -> bytes:
        lines = (f"POST {CHAT} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
        return "\r\n".join([*lines, length, "", ""]).encode()

    def _connect(self) -> socket.socket:
        address = urlsplit(self.server)
        return socket.create_connection((address.hostname, address.port), timeout=SECONDS)

    def _took(self, begin: float) -> None:
        with self.tally.lock:
            self.tally.seconds.append(time.monotonic() - begin)

    def _check(self, response: httpx.Response, status: int = 200) -> None:
        """Raises `Busy`, or `AssertionError` for another status than the expected one."""
        if response.status_code == 429:
            assert int(response.headers["Retry-After"]) > 0
            raise Busy
        assert response.status_code == status, response.read()


@contextmanager
def clients_at_work(
    server: str,
    exchanges: Sequence[Exchange],
    tally: Tally,
    number: int,
    kinds: dict[str, int],
) -> Iterator[None]:
    """So many clients, until the block ends; each then finishes what it has begun."""
    over = threading.Event()
    clients = [Client(server, exchanges, tally, random.Random(seed)) for seed in range(number)]
    threads = [threading.Thread(target=client.work, args=(over, kinds)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
