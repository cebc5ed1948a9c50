"""Processes of a study end with what they work for."""

import time

from metamorph.study.workers import workers


def test_processes_have_ended_with_the_body_though_they_are_at_work():
    """So that the next study of a folder finds nobody who writes to it."""
    with workers(2) as pool:
        [first, *_] = pool.results(time.sleep, [("short", (0,))])
        assert first == ("short", None)
        pool.pool.submit(time.sleep, 300)
        processes = [*pool.pool._processes.values()]
    assert processes and not any(process.is_alive() for process in processes)
