"""A server under all kinds of clients at once, for minutes: nothing is lost, crossed or leaked.

Two minutes; `SOAK_MINUTES=10 python -m pytest tests/serving/test_soak.py` for ten.
"""

import os
import time
from statistics import median

import httpx
import pytest

from tests.serving.exchanges import exchanges, questions
from tests.serving.load import Tally, clients_at_work
from tests.serving.server_process import ServerProcess, server_processes, write_model

SECONDS = 60 * float(os.environ.get("SOAK_MINUTES", "2"))
WARM_UP = 0.3  # of the time: allocators and caches grow to what the load needs
CLIENTS = 24  # a few more than slots and queue together
OPTIONS = ("--slots", "8", "--queue", "12")
KINDS = {  # what clients do, and how often
    "ask": 20,
    "stream": 30,
    "converse": 10,
    "read_slowly": 10,
    "leave": 12,
    "hang_up": 8,
    "ask_badly": 5,
    "send_noise": 3,
    "send_too_much": 2,
}
MOST_GROWTH = 1.05  # of resident memory


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 480)
def test_nothing_is_lost_crossed_or_leaked(tmp_path, record_property):
    with server_processes(write_model(tmp_path), tmp_path, options=OPTIONS) as (server,):
        known = exchanges(server.address, questions(48))
        assert any(exchange.answer.features for exchange in known)
        assert any(not exchange.answer.features for exchange in known)
        files, threads = server.open_files(), server.threads()

        tally, memory, begin = Tally(), [], time.monotonic()
        with clients_at_work(server.address, known, tally, CLIENTS, KINDS):
            while time.monotonic() < begin + SECONDS and not tally.faults:
                if time.monotonic() > begin + WARM_UP * SECONDS:
                    memory.append(server.resident_bytes())
                time.sleep(0.5)

        assert not tally.faults, "\n".join(tally.faults)
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        assert set(tally.done) == {*KINDS, "asked to wait"}
        tenth = max(1, len(memory) // 10)
        early, late = median(memory[:tenth]), median(memory[-tenth:])
        report = f"{tally.report()}\nresident: {early / 2**20:.0f} MiB, then {late / 2**20:.0f} MiB"
        record_property("soak", report)
        assert late < early * MOST_GROWTH

        wait_until_idle(server)
        assert server.open_files() <= files + 4 and server.threads() <= threads + 2
        assert exchanges(server.address, [known[0].body])[0].answer == known[0].answer
        assert server.stop() == 0


def wait_until_idle(server: ServerProcess) -> None:
    """Those who went away have left nothing behind: no answer is made, none waits."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        metrics = server.metrics()
        names = ("queue_length", "active_answers", "drawings")
        if not any(metrics[f"metamorph_{name}"] for name in names):
            return
        time.sleep(0.2)
    raise AssertionError(httpx.get(f"{server.address}/metrics").text)
