"""Programs that a test's scripts begin, forked from a server that has imported everything once."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import torch
from torch.distributed.run import main as torchrun

from metamorph.cli.command import main as metamorph
from tests.processes import CONTEXT

MAINS = {"metamorph": metamorph, "torchrun": torchrun}
# Stands for a program, or for Python with `-m PROGRAM`: says what it was asked, hands signals on,
# and ends as the forked process does.
STAND_IN = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if "-m" in arguments[:2]:
    name, *arguments = arguments[arguments.index("-m") + 1:]
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ["WARM_PROGRAMS"])
said = [name, arguments, dict(os.environ), os.getcwd(), os.getpid()]
server.sendall(json.dumps(said).encode() + b"\\n")
answers = server.makefile()
process = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(answers.readline()))
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextmanager
def warm_programs(folder: Path) -> Iterator[dict[str, str]]:
    """Writes the programs of `MAINS`, and `python`, to `folder`. Yields what the environment of the
    scripts needs beside that folder on PATH."""
    for name in (*MAINS, "python"):
        write_program(folder / name, STAND_IN)
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        Thread(target=_accept, args=(listener,), daemon=True).start()
        # What torchrun begins is Python.
        yield {"WARM_PROGRAMS": address, "PYTHON_EXEC": str(folder / "python")}
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            asking, _ = listener.accept()
        except OSError:  # it was shut down
            return
        Thread(target=_answer, args=(asking,), daemon=True).start()


def _answer(asking: socket.socket) -> None:
    with asking:
        said = json.loads(asking.makefile().readline())
        process = CONTEXT.Process(target=_run, args=said)
        process.start()
        asking.sendall(f"{process.pid}\n".encode())
        process.join()
        asking.sendall(f"{process.exitcode}\n".encode())


def _run(name: str, arguments: list[str], environment: dict, folder: str, stand_in: int) -> None:
    for descriptor in (1, 2):  # where the stand-in prints
        os.dup2(os.open(f"/proc/{stand_in}/fd/{descriptor}", os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.exit(MAINS[name](arguments))
