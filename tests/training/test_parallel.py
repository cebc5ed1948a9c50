"""Several processes train the same model as one: same losses, gradients, samples, whoever stops."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph.config import DataConfig, ParallelConfig, RunConfig
from metamorph.data.lanes import Lanes
from metamorph.errors import Stopped, UserError
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import tiny_config

LOSSES = ("text_loss", "visual_cosine", "mean_baseline_cosine", "gradient_norm")
ROWS = 4  # in a step: what 1, 2 and 4 processes can share


def weights_of(config: RunConfig) -> dict:
    return MetaMorph.from_pretrained(config.output + "/model").state_dict()


def losses_of(config: RunConfig) -> list[list[float]]:
    lines = read_metrics_of(config)
    return [[line[name] for name in LOSSES if name in line] for line in lines]


def read_metrics_of(config: RunConfig) -> list[dict]:
    return read_metrics(Path(config.output))


def assert_same_run(one: RunConfig, other: RunConfig, rel: float = 1e-5) -> None:
    for line, expected in zip(losses_of(other), losses_of(one), strict=True):
        assert line == pytest.approx(expected, rel=rel, abs=1e-6)
    assert [x["skipped"] for x in read_metrics_of(one)] == [
        x["skipped"] for x in read_metrics_of(other)
    ]
    found = weights_of(other)
    for name, expected in weights_of(one).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def train_and_record(config: RunConfig, stop_in_step: int = 0, stop_rank: int = 0) -> list:
    """Sample ids of each own lane in each step. `stop_rank` gets SIGTERM amid `stop_in_step`
    of this part of the run."""
    seen, next_rows = [], Lanes.next_rows

    def recorded(self):
        rows = next_rows(self)
        seen.append({lane: row.sample_ids for lane, row in zip(self.streams, rows, strict=True)})
        if len(seen) == stop_in_step and os.environ.get("RANK", "0") == str(stop_rank):
            os.kill(os.getpid(), signal.SIGTERM)
        return rows

    Lanes.next_rows = recorded
    try:
        train(config)
    except Stopped:
        assert stop_in_step
    finally:
        Lanes.next_rows = next_rows
    return seen


def test_two_and_four_processes_train_as_one(folder):
    one = tiny_config(folder, "instruct", steps=3, rows_per_step=ROWS, weight_decay=0.1)
    train(one)
    for name, processes, shard in (("two", 2, 0), ("four", 4, 0), ("replicas", 4, 2)):
        other = replace(one, output=str(folder / name), parallel=ParallelConfig(shard=shard))
        run_processes(processes, train, other)
        assert_same_run(one, other)


def test_align_moves_the_same_two_rows_wherever_they_are(folder):
    one = tiny_config(folder, "align", steps=2, rows_per_step=2)
    train(one)
    other = replace(one, output=str(folder / "two"))
    run_processes(2, train, other)
    assert_same_run(one, other)


def test_bf16_is_gathered_in_bf16_and_summed_in_fp32(folder):
    one = tiny_config(folder, "instruct", steps=2, rows_per_step=2, precision="bf16")
    train(one)
    other = replace(one, output=str(folder / "two"))
    run_processes(2, train, other)
    for line, expected in zip(losses_of(other), losses_of(one), strict=True):
        assert line == pytest.approx(expected, rel=0.05, abs=0.02)


def test_a_process_without_any_image_neither_hangs_nor_skews_the_mean(folder):
    """Every second line has a picture to draw: lane 0, and with it process 0, never sees one."""
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")

    def line(number: int) -> str:
        turns = [
            {"from": "human", "value": f"Tell me {number}." if number % 2 == 0 else "Draw red."},
            {"from": "gpt", "value": "text" if number % 2 == 0 else "<image>"},
        ]
        images = {} if number % 2 == 0 else {"image": "red.png"}
        return json.dumps({"id": str(number), "conversations": turns, **images})

    path = folder / "data.jsonl"
    path.write_text("\n".join([*map(line, range(40)), "{oops", "{oops"]))
    one = tiny_config(folder, "instruct", steps=2, rows_per_step=2)
    one.data = DataConfig(path=str(path), row_length=64, shuffle=False)
    train(one)
    other = replace(one, output=str(folder / "two"))
    seen = run_processes(2, train_and_record, other)
    assert read_metrics_of(other)[-1]["skipped"]["malformed record"] > 0
    assert all(int(i) % 2 == lane for own in seen for s in own for lane in s for i in s[lane])
    assert_same_run(one, other)


def test_a_run_goes_on_with_other_numbers_of_processes(folder):
    """SIGTERM reaches one process in the midst of a step: all save and stop together."""
    whole = tiny_config(folder, "instruct", steps=6, rows_per_step=ROWS)
    whole.training.checkpoint_every = 100
    expected = train_and_record(whole)
    parts = replace(whole, output=str(folder / "parts"))
    seen = [run_processes(2, train_and_record, parts, 2, 1)]
    seen += [run_processes(4, train_and_record, replace(parts, resume=True), 2, 3)]
    seen += [[train_and_record(replace(parts, resume=True))]]
    steps = [
        dict(lane for own in step for lane in own.items())
        for part in seen
        for step in zip(*part, strict=True)
    ]
    assert [len(part[0]) for part in seen] == [2, 2, 2]
    assert steps == expected
    assert_same_run(whole, parts)


def test_resumed_equals_uninterrupted_bit_for_bit_in_two_processes(folder):
    whole = tiny_config(folder, "instruct", steps=4, rows_per_step=2)
    run_processes(2, train, whole)
    parts = replace(whole, output=str(folder / "parts"))
    run_processes(2, train_and_record, parts, 2, 0)
    run_processes(2, train, replace(parts, resume=True))
    found = weights_of(parts)
    assert all(torch.equal(found[name], weight) for name, weight in weights_of(whole).items())
    assert losses_of(parts) == losses_of(whole)


def test_what_processes_cannot_share_is_named(folder):
    odd = tiny_config(folder, "instruct", rows_per_step=3)
    with pytest.raises(AssertionError, match="rows_per_step: 3 cannot be shared evenly by 2"):
        run_processes(2, train, odd)
    one = tiny_config(folder, "instruct")
    for key, parallel in {
        "parallel.shard: groups of 3 do not fit 1 ": ParallelConfig(shard=3),
        "parallel.cpu_offload: .*torchrun": ParallelConfig(cpu_offload=True),
    }.items():
        with pytest.raises(UserError, match=key):
            train(replace(one, parallel=parallel))
