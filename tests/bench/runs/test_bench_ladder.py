from dataclasses import fields, replace

import pytest
import torch

from bench.harness.documents import SyntheticRow
from bench.runs import ladder
from bench.runs.ladder import RUNGS
from bench.runs.training_step import planned
from metamorph.training import loss

CPU = torch.device("cpu")
[TOY] = ladder.cases("cpu")
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_an_entry_verifies_and_times_all_that_runs_here():
    lines = TOY.run(CPU)
    found = {line.provider: line for line in lines if not line.reason.endswith("tokens/s")}
    assert list(found)[2:] == [rung.name for rung in RUNGS[:5]]
    for rung in RUNGS[:5]:
        assert found[rung.name].status == "ok" and found[rung.name].rate > 0, found[rung.name]
    for rung in RUNGS[5:]:
        assert found[rung.name].reason == "compiled on a GPU only"
    speeds = [line for line in lines if line.reason.endswith("tokens/s")]
    assert [line.provider for line in speeds] == [rung.name for rung in RUNGS[:5]]
    # Real tokens: those of the packed row, whatever a rung pads.
    speed = float(speeds[0].reason.removesuffix(" tokens/s").replace(",", ""))
    tokens = 1e3 * 1024 / found["padded, eager"].timing.milliseconds
    assert speed == pytest.approx(tokens, rel=5e-3)  # in three digits or more
    assert "1024 tokens of 4 documents, 1331 tokens when padded" in speeds[0].case


def test_each_rung_adds_one_thing_to_the_one_before():
    names = [field.name for field in fields(ladder.Rung)]
    states = [[getattr(rung.method, name) for name in names] for rung in RUNGS]
    assert not any(states[0]) and all(states[-1])
    assert [sum(state) for state in states] == list(range(len(RUNGS)))
    assert len({rung.name for rung in RUNGS}) == len(RUNGS)


def test_a_wrong_rung_is_not_timed(monkeypatch):
    right_losses, right_batches = loss.vpit_losses, ladder.padded_batches

    def slightly_more(*arguments):
        losses = right_losses(*arguments)
        return replace(losses, visual=1.01 * losses.visual)

    def without_the_last_documents(lengths):
        return right_batches(lengths)[:-1]

    monkeypatch.setattr(loss, "vpit_losses", slightly_more)
    monkeypatch.setattr(ladder, "padded_batches", without_the_last_documents)
    lines = TOY.run(CPU)
    assert {line.provider for line in lines if line.timing} == {"ours packed"}
    wrong = [line for line in lines if line.status == "failed"]
    assert [line.provider for line in wrong] == ["padded, eager", *(r.name for r in RUNGS[2:5])]
    assert all(line.reason.startswith("wrong: error") for line in wrong)


def test_rungs_of_a_gpu_are_right_too():
    trial = ladder._Trial(replace(TOY, precision="bf16"), CPU)
    bf16 = [trial.candidate(rung.method) for rung in RUNGS[:5]]
    fp8 = trial.candidate(replace(RUNGS[-1].method, compiled=False))
    assert all(1e-4 < each.error <= each.bound for each in (*bf16, fp8))
    assert fp8.float8 and fp8.error > 3 * bf16[-1].error


def test_padded_rows_hold_the_same_documents():
    row = SyntheticRow((80, 5, 70), ((10, 74), (87, 151)))
    _, batch, _ = planned(row, TOY, CPU)
    batch = replace(batch, pixels=torch.arange(2))
    features = torch.arange(2 * 64).view(2, 64, 1)
    first, second = ladder.padded(batch, features)

    assert torch.equal(first.batch.token_ids, batch.token_ids[:80])
    assert torch.equal(second.batch.token_ids[:5], batch.token_ids[80:85])
    assert second.batch.token_ids[5:70].eq(0).all()
    assert torch.equal(second.batch.token_ids[70:], batch.token_ids[85:])
    assert second.batch.positions.tolist() == [*range(70), *range(70)]
    assert first.mask.shape == (1, 1, 80, 80) and second.mask.shape == (2, 1, 70, 70)
    assert second.mask[0, 0, 3].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert second.mask[0, 0, 9].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert second.mask[1, 0, 9].sum() == 10

    # The image of the last document starts two tokens after it, and is the one that is predicted.
    assert first.batch.visual_positions.tolist() == list(range(10, 74))
    assert second.batch.visual_positions.tolist() == list(range(72, 136))
    assert first.batch.pixels.tolist() == [0] and second.batch.pixels.tolist() == [1]
    assert torch.equal(second.features, features[1:])
    assert len(first.batch.visual_rows) == 0
    assert second.batch.visual_rows.tolist() == list(range(71, 135))
    assert second.batch.visual_targets.tolist() == list(range(64))

    labels = [*first.labels.tolist(), *second.labels[:5].tolist(), *second.labels[70:].tolist()]
    [whole] = [ladder.packed(batch, features).labels.tolist()]
    assert labels == whole and sum(label >= 0 for label in labels) == len(batch.text_rows)


def test_a_padded_batch_has_no_more_tokens_than_the_packed_row():
    assert ladder.padded_batches((80, 5, 70)) == [[80], [5, 70]]  # 2 x 80 are more than 155
    assert ladder.padded_batches((40, 40, 40, 1)) == [[40, 40, 40], [1]]  # 4 x 40 more than 121
    assert ladder.padded_batches((7,)) == [[7]]


def test_a_target_at_the_start_of_its_document_is_not_predicted():
    row = SyntheticRow((64, 64, 70), ((0, 64), (64, 128), (128, 192)))
    _, batch, counts = planned(row, TOY, CPU)
    assert counts.visual == len(batch.visual_rows) == 0
