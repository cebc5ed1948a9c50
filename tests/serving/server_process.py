"""Servers in processes of their own, as users start them; a tiny model that writes and draws."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from metamorph.model import assemble
from tests.tiny_run import GRID, let_speak, tiny_decoder, write_language, write_vision

ROOT = Path(__file__).parent.parent.parent
START_SECONDS, STOP_SECONDS = 120, 60
READY = re.compile(r"^serving on (\S+)$", re.MULTILINE)


def write_model(folder: Path) -> Path:
    """A model folder with a decoder, see `let_speak`."""
    model, tokenizer = assemble(
        write_language(folder / "llama"), write_vision(folder / "siglip"), grid=GRID
    )
    let_speak(model)
    model.save_pretrained(folder / "model", tokenizer)
    tiny_decoder().save_pretrained(folder / "model" / "decoder")
    return folder / "model"


@dataclass
class ServerProcess:
    """A server, and what is to be seen of it from outside."""

    process: subprocess.Popen
    log: Path
    address: str = ""  # http://127.0.0.1:port, once it takes requests

    def stop(self) -> int:
        """Asks it to stop, and waits. Its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def metrics(self) -> dict[str, float]:
        """Values by name and labels, as they stand on the page of metrics."""
        lines = httpx.get(f"{self.address}/metrics").raise_for_status().text.splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@contextmanager
def server_processes(
    model: Path, logs: Path, number: int = 1, options: Sequence[str] = ()
) -> Iterator[list[ServerProcess]]:
    """So many servers of a model folder, which start together; all are gone in the end."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "metamorph", "serve", "--model", str(model), "--port", "0"]
    servers: list[ServerProcess] = []
    try:
        for at in range(number):
            log = logs / f"server-{at}.log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [*command, "--device", "cpu", *options],
                    stdout=file, stderr=subprocess.STDOUT, env=environment,
                )  # fmt: skip
            servers.append(ServerProcess(process, log))
        for server in servers:
            server.address = wait_for(server)
        yield servers
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


def wait_for(server: ServerProcess) -> str:
    """The address at which it takes requests. Raises `AssertionError` with its log if it never
    does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        if found := READY.search(server.log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{server.log.read_text()[-2000:]}")
