from dataclasses import replace

import pytest
import torch

from bench.harness.documents import packed_row
from bench.harness.providers import Provider
from bench.runs import training_step
from bench.runs.training_step import Recipe

CPU = torch.device("cpu")
[TINY] = training_step.cases("cpu")
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_an_entry_verifies_and_times_all_that_runs_here():
    found = {line.provider: line for line in TINY.run(CPU)}
    assert list(found) and set(found) == {provider.name for provider in training_step.PROVIDERS}
    for name in ("ours bf16", "ours fp8"):
        assert found[name].status == "ok" and found[name].rate > 0
    assert 3 * found["ours bf16"].error < found["ours fp8"].error
    assert found["ours bf16, compiled"].reason == "compiled on a GPU only"
    assert "transformer_engine cannot be used here" in found["Transformer Engine fp8"].reason
    assert found["bf16, apex RMSNorm"].reason.startswith("model.rms_norm: apex")


def test_a_wrong_step_is_not_timed(monkeypatch):
    class Wrong(training_step._Trial):
        def _model(self, recipe):
            model = super()._model(recipe)
            mlp = model.language.model.layers[0].mlp
            mlp.register_forward_hook(lambda module, arguments, out: 2 * out)
            return model

    monkeypatch.setattr(training_step, "_Trial", Wrong)
    monkeypatch.setattr(training_step, "PROVIDERS", [Provider("doubled", Recipe("bf16"))])
    [line] = TINY.run(CPU)
    assert line.status == "failed" and line.reason.startswith("wrong: error")


def test_all_providers_move_the_same_weights():
    trial = training_step._Trial(TINY, CPU)
    models = [trial._model(recipe) for recipe in (Recipe("bf16"), Recipe("fp8", "native"))]
    base = trial.weights.base
    for model in models:
        names = dict(model.named_parameters())
        assert all(names[name] is weight for name, weight in base.named_parameters())


def test_work_is_counted_by_what_has_to_be_done():
    row = packed_row(TINY.tokens, "spans")
    _, batch, counts = training_step.planned(row, TINY, CPU)
    assert counts.text == len(batch.text_rows) and counts.visual == len(batch.visual_rows) > 0
    assert set(batch.text_rows.tolist()).isdisjoint(batch.visual_positions.tolist())
    one, two = (
        training_step.step_flops(row, replace(TINY, layers=layers), batch) for layers in (1, 2)
    )
    # q, k, v and o; gate, up and down; and the attention, whose head dim is 64 / 4.
    products = 2 * 384 * 64 * (64 + 32 + 32 + 64 + 3 * 128)
    pairs = sum(length * (length + 1) // 2 for length in row.lengths)
    assert two - one == 3 * (products + 4 * 16 * 4 * pairs)
