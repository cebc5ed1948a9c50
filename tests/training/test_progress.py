"""How long a run is: steps, or epochs of which every sample is used once."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from metamorph.config import DataConfig, TrainingConfig
from metamorph.config.reading import load_config
from metamorph.errors import Stopped, UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import Run, train
from metamorph.training.optimizer import Progress, learning_rate
from metamorph.training.rules.length import check_length
from tests.tiny_run import tiny_config

CONFIGS = Path(__file__).parents[2] / "configs"


def rates(progress: Progress, used: list[int], **training) -> list[float]:
    """Of steps after which so many samples have been used."""
    config, found = TrainingConfig(learning_rate=2.0, **training), []
    for samples in used:
        progress.advance(samples)
        found.append(learning_rate(progress, config))
    assert progress.is_over
    return found


def test_the_rate_warms_up_peaks_and_ends_near_zero():
    found = rates(Progress(100), [0] * 100, warmup_ratio=0.1)
    assert found[0] == pytest.approx(0.2) and found[9] == max(found) == pytest.approx(2.0)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 0.01
    assert found[55] == pytest.approx(1.0, abs=0.02)  # half way down the cosine


def test_no_warm_up_starts_at_the_peak():
    assert rates(Progress(10), [0] * 10, warmup_ratio=0.0)[0] == 2.0


def test_samples_that_come_evenly_give_the_rates_of_as_many_steps():
    by_samples = rates(Progress(700, 700), [*range(7, 701, 7)], warmup_ratio=0.1)
    assert by_samples == pytest.approx(rates(Progress(100), [0] * 100, warmup_ratio=0.1))


def test_the_rate_follows_the_samples_however_they_fall_into_steps():
    found = rates(Progress(100, 50), [3, 12, 60, 99, 100], warmup_ratio=0.1)
    assert found[0] == pytest.approx(2.0 * 3 / 10) and found[1] == 2.0  # no more than the peak
    assert found[2:] == sorted(found[2:], reverse=True) and found[-1] < 0.01


def test_a_logarithmic_warm_up_falls_in_a_line():
    """The paper's decoder: 2000 steps up to 1.1e-5, then down to 0 at step 12000."""
    config = load_config(CONFIGS / "metamorph_8b" / "decoder.yaml").training
    progress, found = Progress(config.steps), {0: 0.0}
    for step in range(1, 12001):
        progress.advance(0)
        found[step] = learning_rate(progress, config)
    for step in (1, 9, 100, 1999, 2000):
        assert found[step] == pytest.approx(1.1e-5 * math.log(1 + step) / math.log(2001))
    for step in (2001, 7001, 12000):  # the first step after the warm-up is at the peak, too
        assert found[step] == pytest.approx(1.1e-5 * (12001 - step) / 10000)
    assert max(found.values()) == found[2000] == pytest.approx(1.1e-5)


def test_a_logarithmic_warm_up_counts_steps_where_a_run_counts_samples():
    options = {"schedule": "logarithmic", "warmup_ratio": 0.1}
    by_samples = rates(Progress(700, 700), [*range(7, 701, 7)], **options)
    assert by_samples == pytest.approx(rates(Progress(100), [0] * 100, **options))
    uneven = rates(Progress(100, 50), [3, 12, 60, 99, 100], **options)
    assert 0 < uneven[0] < 2.0 and uneven[1] == 2.0
    assert uneven[2:] == sorted(uneven[2:], reverse=True) and uneven[-1] < 0.3


@pytest.mark.parametrize("schedule", ["cosine", "logarithmic"])
def test_steps_of_warm_up_are_a_share_of_the_run(schedule):
    as_steps = rates(Progress(50), [0] * 50, schedule=schedule, warmup_steps=10)
    assert as_steps == rates(Progress(50), [0] * 50, schedule=schedule, warmup_ratio=0.2)
    only = rates(Progress(10), [0] * 10, schedule=schedule, warmup_steps=10)
    assert only == sorted(only) and only[-1] == 2.0  # it is all of the run


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"warmup_steps": 3, "warmup_ratio": 0.5}, "got 3, but training.warmup_ratio says 0.5"),
        ({"warmup_steps": 7}, "got 7, expected at most training.steps, 6"),
        ({"warmup_steps": 3, "steps": None, "epochs": 1.0}, "training.epochs takes is not known"),
    ],
)
def test_a_warm_up_that_does_not_fit_is_refused(tmp_path, training, message):
    config = tiny_config(tmp_path, "instruct")
    config.training = replace(config.training, **training)
    with pytest.raises(UserError, match=f"training.warmup_steps: .*{message}"):
        check_length(config, own_source=True)


def epochs_config(folder, epochs, samples=37, rows=2, **training):
    config = tiny_config(folder, "instruct", rows_per_step=rows, **training)
    config.data.samples = samples
    config.training.steps, config.training.epochs = None, epochs
    return config


@pytest.fixture
def used(monkeypatch):
    """Ids of the samples that steps have trained on, as often as they have."""
    ids, record = Counter(), Run.record

    def record_ids(run, *arguments):
        ids.update(run.stage.last_samples())
        record(run, *arguments)

    monkeypatch.setattr(Run, "record", record_ids)
    return ids


@pytest.mark.parametrize("epochs", [1.0, 2.0, 0.5])
def test_every_sample_is_trained_on_once_an_epoch(folder, used, epochs):
    train(epochs_config(folder, epochs))
    assert sum(used.values()) == round(epochs * 37)
    assert set(used.values()) == {max(1, int(epochs))}
    last = read_metrics(folder / "instruct")[-1]
    assert last["epoch"] == pytest.approx(epochs, abs=0.5 / 37)


def test_resumed_equals_uninterrupted(folder, used, monkeypatch):
    config = epochs_config(folder, 1.0)
    config.training.checkpoint_every = 2
    train(replace(config, output=str(folder / "whole")))
    assert len(used) == 37
    used.clear()
    part = replace(config, output=str(folder / "part"))
    with monkeypatch.context() as patch:
        save = Run.save

        def save_and_stop(run, step):
            save(run, step)
            raise Stopped(f"after step {run.progress}")

        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(Stopped, match=r"after step 2, epoch 0\.\d+ of 1$"):
            train(part)
    train(replace(part, resume=True))
    assert len(used) == 37 and set(used.values()) == {1}

    def lines(name):
        keys = ("step", "epoch", "text_loss", "learning_rate", "gradient_norm")
        return [[line[key] for key in keys] for line in read_metrics(folder / name)]

    assert lines("part") == lines("whole")


def test_fewer_samples_than_lanes_are_trained_on_as_well(folder, used):
    train(epochs_config(folder, 1.0, samples=2, rows=4))
    assert sum(used.values()) == 2 and len(read_metrics(folder / "instruct")) == 1


def test_data_of_which_nothing_can_be_used_is_named(folder):
    config = epochs_config(folder, 1.0, samples=3)
    config.data.row_length = 8
    with pytest.raises(UserError, match="none of 3 samples can be used; .*longer than a row"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1000}, "training.epochs: got 2, but training.steps says 1000"),
        ({"samples": 0}, "training.epochs: data.source toy_scenes never ends; give it data.sampl"),
    ],
)
def test_what_does_not_say_how_long_a_run_is(folder, changes, message):
    config = epochs_config(folder, 2.0, samples=changes.get("samples", 5))
    config.training.steps = changes.get("steps")
    with pytest.raises(UserError, match=message):
        train(config)


def test_a_part_of_a_mixture_that_never_ends_is_named(folder):
    (folder / "mixture.yaml").write_text("scenes: {source: toy_scenes}\n")
    config = epochs_config(folder, 1.0)
    config.data = DataConfig("mixture", path=str(folder / "mixture.yaml"))
    with pytest.raises(UserError, match=r"mixture.yaml: part 'scenes' never ends"):
        train(config)


def test_a_run_without_a_word_of_its_length_has_1000_steps(tmp_path):
    config = tiny_config(tmp_path, "instruct")
    assert replace(config, training=TrainingConfig()).training.steps == 1000
    assert replace(config, training=TrainingConfig(epochs=2.0)).training.steps is None
