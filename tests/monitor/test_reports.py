"""What a run tells of itself: log lines, trackers, drawings and traces."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from metamorph.config import MonitorConfig, ParallelConfig, RunConfig
from metamorph.data.packing import PackedRow
from metamorph.errors import UserError
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.monitor.telemetry import StepWork, peak_teraflops
from metamorph.monitor.trackers import Trackio
from metamorph.training.language_stage import LanguageStage
from metamorph.training.loop import train
from tests import fake_libraries, fake_trackio
from tests.processes import run_processes
from tests.tiny_run import tiny_config, tiny_decoder


@pytest.fixture
def config(folder) -> RunConfig:
    tiny_decoder(feature_width=24).save_pretrained(folder / "decoder")
    return tiny_config(folder, "instruct", steps=4, rows_per_step=2)


def watched(config: RunConfig, name: str, **monitor) -> RunConfig:
    decoder = str(Path(config.output).parent / "decoder")
    output = str(Path(config.output).parent / name)
    return replace(config, output=output, monitor=MonitorConfig(decoder=decoder, **monitor))


def weights_of(config: RunConfig) -> dict:
    return MetaMorph.from_pretrained(config.output + "/model").state_dict()


def test_a_watched_run_tells_more_and_learns_the_same(config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config)
    seen = watched(config, "seen", tensorboard=True, samples_every=2, samples=3, profile=2)
    train(seen)
    expected = weights_of(config)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(seen).items())

    folder = Path(seen.output)
    lines = read_metrics(folder)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"text_loss", "visual_cosine_over_mean"} <= set(events.Tags()["scalars"])
    written = [(event.step, event.value) for event in events.Scalars("text_loss")]
    assert written == [(line["step"], pytest.approx(line["text_loss"])) for line in lines]
    assert [event.step for event in events.Images("samples")] == [2, 4]

    sheets = sorted(path.name for path in (folder / "samples").iterdir())
    assert sheets == ["step-000002.png", "step-000004.png"]
    width, height = Image.open(folder / "samples" / sheets[0]).size
    assert width > 900 and height > 200  # three cells side by side

    trace = json.loads(gzip.decompress((folder / "profile" / "trace-2.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])


def test_a_log_line_splits_norms_and_tokens(config):
    train(config)
    for line in read_metrics(Path(config.output)):
        parts = [line[f"gradient_norm_{name}"] for name in ("language", "projector", "vision_head")]
        assert min(parts) > 0
        assert sum(norm**2 for norm in parts) ** 0.5 == pytest.approx(line["gradient_norm"])
        both = line["text_tokens_per_second"] + line["visual_tokens_per_second"]
        assert line["tokens_per_second"] == pytest.approx(both)
        assert line["visual_tokens_per_second"] == pytest.approx(4 * line["images_per_second"])
        gain = line["visual_cosine"] - line["mean_baseline_cosine"]
        assert line["visual_cosine_over_mean"] == pytest.approx(gain, abs=1e-6)
        assert 0 < line["data_wait_share"] < 1
        assert 0 < line["encoder_teraflops"] < line["teraflops"]
        assert line["memory_gigabytes"] > 0.1
        assert "mfu" not in line  # of what peak?


def test_work_of_rows_is_counted_once_and_the_encoder_where_it_runs(config):
    stage = LanguageStage(config, torch.device("cpu"))
    row: PackedRow = stage.lanes.next_rows()[0]
    work = StepWork(stage.module)
    one = work.of([row])
    assert one["images"] == len(row.images) and one["visual_tokens"] == 4 * len(row.images)
    assert one["text_tokens"] + one["visual_tokens"] == row.used
    two = work.of([row, row])
    assert two == {name: pytest.approx(2 * amount) for name, amount in one.items()}
    cached = replace(row, images=(), features=torch.zeros(len(row.images), 4, 24))
    assert work.of([cached]) == one | {"encoder_teraflops": 0}


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H200", "fp8", 1978.9),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_utilisation_needs_a_known_peak(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_teraflops(torch.device("cuda"), precision) == peak
    assert peak_teraflops(torch.device("cpu"), precision) is None


def test_sharded_models_draw_too_and_go_on_as_if_they_had_not(config):
    plain = replace(config, parallel=ParallelConfig(shard=0))
    run_processes(2, train, plain)
    seen = watched(plain, "seen", samples_every=2, samples=2)
    run_processes(2, train, seen)
    expected = weights_of(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(seen).items())
    assert len(list((Path(seen.output) / "samples").iterdir())) == 2


def test_a_resumed_run_goes_on_in_the_same_page_of_wandb(config, monkeypatch):
    runs = []

    class Run:
        def __init__(self, options):
            self.options, self.logged, self.id = options, [], options["id"] or "made-up"
            runs.append(self)

        def log(self, values, step):
            self.logged.append((step, set(values)))

        def finish(self):
            self.logged.append("finished")

    stand_in = SimpleNamespace(init=lambda **options: Run(options), Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setattr("metamorph.training.rules.ways.require", lambda *arguments: "wandb")
    config = watched(config, "seen", wandb=True, samples_every=4)
    train(config)
    train(replace(config, resume=True))
    first, second = runs
    assert first.options["id"] is None and second.options["id"] == "made-up"
    assert first.options["config"]["training"]["steps"] == 4
    assert [step for step, _ in first.logged[:-1]] == [1, 2, 3, 4, 4]
    assert first.logged[-2] == (4, {"samples"}) and first.logged[-1] == "finished"


def test_a_resumed_run_goes_on_in_the_same_page_of_trackio(config, monkeypatch):
    fake_libraries.install(monkeypatch, "trackio")
    fake_trackio.RUNS.clear()
    config = watched(config, "seen", trackio=True, samples_every=4)
    train(config)
    train(replace(config, resume=True))
    first, second = fake_trackio.RUNS
    assert first.name == second.name and first.name.startswith("seen-")
    assert (first.resumed, second.resumed) == (False, True)
    assert first.config["training"]["steps"] == 4
    assert [step for step, _ in first.logged] == [1, 2, 3, 4, 4]
    assert first.logged[0][1]["text_loss"] > 0
    assert isinstance(first.logged[-1][1]["samples"].value, Image.Image)
    assert first.finished and second.finished


def test_two_runs_in_folders_of_the_same_name_have_pages_of_their_own(tmp_path, monkeypatch):
    fake_libraries.install(monkeypatch, "trackio")
    fake_trackio.RUNS.clear()
    for parent in ("a", "b"):
        (tmp_path / parent / "instruct").mkdir(parents=True)
        Trackio(tmp_path / parent / "instruct", RunConfig("instruct", "unused"))
    assert len({run.name for run in fake_trackio.RUNS}) == 2


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ({"wandb": True}, "monitor.wandb cannot be used here .*not installed"),
        ({"trackio": True}, "monitor.trackio cannot be used here .*not installed"),
        ({"samples_every": 1, "decoder": ""}, "monitor.decoder: monitor.samples_every needs"),
        ({"samples_every": 1, "decoder": "nowhere"}, "monitor.decoder: nowhere does not exist"),
    ],
)
def test_what_cannot_be_shown_is_known_before_training(config, monitor, message):
    config = replace(config, monitor=MonitorConfig(**monitor))
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Path(config.output).exists()


def test_data_that_never_draw_are_told_apart(config):
    config = watched(config, "seen", samples_every=1)
    config.data.kinds = {"question": 1.0}
    with pytest.raises(UserError, match="none of the first 1000 samples begins .* is a picture"):
        train(config)
