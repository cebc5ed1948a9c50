import sys
from dataclasses import replace

import pytest
import torch

from bench.runs import generation
from bench.runs.generation import IMAGE, PREFILL, TEXT
from bench.runs.models import TOY
from metamorph.generation import Prompt, decode_step, generate

CPU = torch.device("cpu")
TINY = generation.Case(2, **TOY | {"prompt": 70, "answer": 3, "dtype": torch.float32})
pytestmark = pytest.mark.usefixtures("few_repeats")


def timed(results):
    return {(r.operation, r.provider): r for r in results if not r.reason.endswith("tokens/s")}


def test_an_entry_verifies_and_times_all_that_runs_here():
    results = TINY.run(CPU)
    found = timed(results)
    operations = [f"generation: {operation}" for operation in (PREFILL, TEXT, IMAGE)]
    assert set(found) == {
        (operation, p.name) for operation in operations for p in generation.PROVIDERS
    }
    for line in found.values():
        assert line.status == "ok" and line.rate > 0, line
    assert len(results) == 2 * len(found)
    milliseconds = found["generation: image decode", "uncached"].timing.milliseconds
    speed = float(results[-1].reason.removesuffix(" tokens/s").replace(",", ""))
    assert speed == pytest.approx(1e3 * 2 * 64 / milliseconds, rel=5e-3)  # in three digits or more


def test_a_wrong_answer_is_not_timed(monkeypatch):
    right = decode_step.decode

    def over_the_token_before(model, cache, rotary, embeddings, places, visible):
        places.fill_(TINY.prompt)
        return right(model, cache, rotary, embeddings, places, visible)

    monkeypatch.setattr(decode_step, "decode", over_the_token_before)
    for (operation, provider), line in timed(TINY.run(CPU)).items():
        wrong = provider == "ours cached" and operation != "generation: prefill"
        assert line.status == ("failed" if wrong else "ok"), line


def test_bfloat16_errs_as_much_as_plain_bfloat16():
    trial = generation._Trial(replace(TINY, dtype=torch.bfloat16), CPU)
    for cached in (True, False):
        error, bound = trial._judged(TEXT, *trial._generate(TEXT, cached))
        assert 1e-4 < error <= bound < 0.02


@pytest.mark.parametrize("operation", [TEXT, IMAGE])
def test_an_unlikely_token_or_another_vector_is_wrong(operation):
    trial = generation._Trial(TINY, CPU)
    states, said = trial._generate(operation, cached=True)
    error, bound = trial._judged(operation, states, said)
    assert error <= bound
    said[0, -1] = (said[0, -1] + 1) % TINY.vocabulary if operation == TEXT else -said[0, -1]
    error, bound = trial._judged(operation, states, said)
    assert error > bound


def test_the_steps_are_those_of_generate():
    trial = generation._Trial(TINY, CPU)
    states, said = trial._generate(TEXT, cached=True)
    best, second = trial.model.language.head(states).topk(2).values.unbind(-1)
    assert (best - second).min() > 1e-3  # so that no rounding chooses another token
    expected = generate(trial.model, trial.prompts, max_new_tokens=3)
    assert said.tolist() == [each.token_ids for each in expected]

    start = trial.model.config.image_start_id
    prompts = [
        Prompt([*prompt.token_ids[:-1], start], prompt.visual_positions, prompt.features)
        for prompt in trial.prompts
    ]
    trial.cache, trial.first = trial.prefill(prompts)
    _, said = trial._generate(IMAGE, cached=True)
    expected = generate(trial.model, prompts, max_new_tokens=65)
    images = torch.stack([each.images[0] for each in expected])
    # Its cache has another size, so that sums over up to 134 keys may be taken in another order.
    torch.testing.assert_close(said, images, rtol=0, atol=134 * torch.finfo(said.dtype).eps)


def test_work_is_counted_by_what_has_to_be_done():
    # q, k, v and o; gate, up and down: of each of two layers. Four heads of 16.
    layers = 2 * 64 * (64 + 32 + 32 + 64 + 3 * 128)
    projector = 32 * 64 + 64 * 64
    pairs = 70 * 71 // 2
    attention = 2 * 4 * 16 * 4 * pairs
    per_prompt = 2 * 70 * layers + attention + 2 * 64 * projector + 2 * 64 * 256
    assert TINY.work(PREFILL) == (2 * per_prompt, "TFLOP/s")
    # Three tokens: the first is the prefill's; the second sees 71 keys and values, the third 72.
    keys = 2 * 2 * 2 * (71 + 72) * 2 * 16
    assert TINY.work(TEXT) == (4 * (keys + 2 * layers + 3 * 64 * 256), "GB/s")
    keys = 2 * 2 * 2 * sum(range(71, 134)) * 2 * 16
    weights = 63 * layers + 63 * projector + 64 * projector  # the vision head is as large
    assert TINY.work(IMAGE) == (4 * (keys + weights), "GB/s")


def test_a_bare_machine_has_no_model_and_counts_no_work(monkeypatch):
    for missing in ("transformers", "metamorph.costs.flops"):  # which needs transformers
        monkeypatch.setitem(sys.modules, missing, None)
    for line in TINY.run(CPU):
        assert line.reason == "transformers is not installed, which the model needs"


def test_what_would_take_minutes_is_absent():
    one, eight, many = generation.cases("cuda")
    assert [case.batch for case in (one, eight, many)] == [1, 8, 32]
    assert eight.absence(TEXT, cached=False) is None and many.absence(TEXT, cached=True) is None
    assert many.absence(IMAGE, cached=False) == "takes minutes; run up to 8 sequences"
    assert many.absence(PREFILL, cached=False) is None
