"""Steps whose loss or gradient is not finite change nothing, are told apart, and end a run if many
follow each other."""

from dataclasses import replace

import pytest
import torch

from metamorph.errors import UserError
from metamorph.model.unified import MetaMorph
from metamorph.monitor.bad_steps import BadSteps
from metamorph.monitor.means import Means
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training import language_stage
from metamorph.training.batch import Batch
from metamorph.training.checkpoint import latest_checkpoint
from metamorph.training.loop import train
from metamorph.training.optimizer import step_unless
from tests.tiny_run import tiny_config

NO, YES = torch.tensor(False), torch.tensor(True)


@pytest.fixture
def poison(monkeypatch):
    """Makes the text loss of the numbered steps NaN."""

    def from_now_on(*steps):
        honest, calls = language_stage.vpit_losses, []

        def losses(*arguments):
            calls.append(None)
            found = honest(*arguments)
            return replace(found, text=found.text * float("nan")) if len(calls) in steps else found

        monkeypatch.setattr(language_stage, "vpit_losses", losses)

    return from_now_on


def weights_of(folder) -> dict:
    return MetaMorph.from_pretrained(folder).state_dict()


def test_adamw_leaves_weights_and_its_own_state_alone_in_a_bad_step():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], weight_decay=0.1, fused=True)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    step_unless(NO, optimizer)
    before = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}
    weight.grad = torch.tensor([1.0, float("nan"), 3.0])
    step_unless(YES, optimizer)
    assert torch.equal(weight, before[0])
    assert all(torch.equal(optimizer.state[weight][key], old) for key, old in before[1].items())
    step_unless(NO, optimizer)
    assert not torch.equal(weight, before[0])


def test_an_optimizer_that_cannot_skip_by_itself_is_not_called():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), float("nan"))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    step_unless(YES, optimizer)
    assert torch.equal(weight, torch.ones(3))
    step_unless(NO, optimizer)
    assert weight.isnan().all()


def test_bad_steps_are_no_part_of_the_means():
    means = Means()
    means.add({"loss": torch.tensor(2.0), "host": 1.0}, NO)
    means.add({"loss": torch.tensor(float("nan")), "host": 3.0}, YES)
    means.add({"loss": torch.tensor(4.0)}, NO)
    assert means.values() == {"loss": 3.0, "host": 2.0}
    only_bad = Means()
    only_bad.add({"loss": torch.tensor(float("inf"))}, YES)
    assert only_bad.values() == {}


def test_a_run_goes_on_after_bad_steps_and_names_their_samples(folder, poison, capsys):
    config = tiny_config(folder, "instruct", steps=6)
    config.training.log_every = 2
    poison(3, 5)
    weights = weights_of(train(config))
    assert all(weight.isfinite().all() for weight in weights.values())
    lines = read_metrics(folder / "instruct")
    assert [[bad["step"] for bad in line.get("bad_steps", [])] for line in lines] == [[], [3], [5]]
    assert all(name.startswith("toy-train") for name in lines[1]["bad_steps"][0]["samples"])
    assert all(line["text_loss"] < 100 for line in lines)
    assert "step 3 was not finite" in capsys.readouterr().out


def test_a_bad_step_changes_no_weight(folder, poison):
    config = tiny_config(folder, "instruct", steps=1)
    untouched = train(replace(config, output=str(folder / "still"), training=replace(
        config.training, learning_rate=1e-30, weight_decay=0.0)))  # fmt: skip
    poison(1)
    after = weights_of(train(config))
    for name, before in weights_of(untouched).items():
        assert torch.equal(before, after[name]), name


def test_too_many_bad_steps_in_a_row_end_the_run(folder, poison):
    config = tiny_config(folder, "instruct", steps=9, max_bad_steps=3)
    config.training.checkpoint_every = 1
    poison(2, 3, 5, 6, 7)
    with pytest.raises(UserError, match="step 7: .*not finite.* 3. time in a row.*toy-train"):
        train(config)
    assert latest_checkpoint(folder / "instruct").name == "step-000006"


def test_bad_steps_in_a_row_are_counted_over_a_resume():
    first = BadSteps(most=3)
    for step in (1, 2):
        first.add(step, YES, ["a"])
    second = BadSteps(most=3)
    second.load_state_dict(first.state_dict())
    assert [bad["step"] for bad in second.take()] == [1, 2]
    second.add(3, YES, ["b"])
    with pytest.raises(UserError, match="step 3"):
        second.read()


def test_one_nan_in_the_targets_does_not_stay_in_the_baseline(folder, monkeypatch):
    """The means of all targets so far go on with the next step, and into checkpoints."""
    honest, calls = Batch.visual_features, []

    def features(self, vision):
        calls.append(None)
        return honest(self, vision) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(Batch, "visual_features", features)
    config = tiny_config(folder, "instruct", steps=5)
    train(config)
    lines = read_metrics(folder / "instruct")
    assert [line["step"] for line in lines if "bad_steps" in line] == [2]
