"""Runs a function in several real processes that find each other as those of torchrun do."""

import multiprocessing
import os
import queue
import socket
import traceback
from collections.abc import Callable

import torch

# Forked from a server that has imported everything once, and has no threads that a fork would lose.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",  # optimizers import it in their first step
        "metamorph.training.language_stage",
        "metamorph.training.decoder_stage",
        "metamorph.cli.command",
        "tests.training.test_checkpoint",
        "tests.training.test_damage",
        "tests.training.test_decoder_parallel",
        "tests.training.test_full_disk",
        "tests.training.test_kills",
        "tests.training.test_parallel",
        "tests.training.test_stopping",
    ]
)
SECONDS = 100


def run_processes(count: int, function: Callable, *arguments, dying: int = 0) -> list:
    """What `function(*arguments)` returns in each of `count` processes, in their order; `dying` of
    them are expected to die before they return.

    Raises `AssertionError` with the traceback of a process that failed, or if they hang.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    results = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=_run, args=(rank, count, port, results, function, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    found = {}
    try:
        while len(found) < count - dying:
            rank, error, value = results.get(timeout=SECONDS)
            assert error is None, f"process {rank} of {count}:\n{error}"
            found[rank] = value
    except queue.Empty:
        raise AssertionError(f"only {sorted(found)} of {count} processes ended") from None
    finally:
        for process in processes:
            process.join(5 if len(found) == count - dying else 0)
            process.kill()
    return [found[rank] for rank in sorted(found)]


def _run(rank: int, count: int, port: int, results, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        results.put((rank, None, function(*arguments)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
