"""The toy tasks of examples/lmms_eval, and lmms-eval's own runner on them where it is installed."""

import json
import runpy
from pathlib import Path

import pytest

from metamorph import libraries
from metamorph.integrations.lmms_eval.manifest import manifest
from metamorph.integrations.lmms_eval.requests import parts as two_turns
from metamorph.model import assemble
from tests.page_folder import let_draw
from tests.tiny_run import GRID

EXAMPLES = Path(__file__).parents[2] / "examples/lmms_eval"
ABSENCE = libraries.lmms_eval_absence("cpu")
TASKS = "metamorph_toy_questions", "metamorph_toy_drawn"


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """The working directory, with three documents of each task."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "toy_scenes.py"))["write"](Path("runs/lmms_eval"), count=3)
    return tmp_path / "runs/lmms_eval"


def test_documents_are_what_the_tasks_read(documents):
    task = runpy.run_path(str(EXAMPLES / "toy_task.py"))
    for line in (documents / "questions.jsonl").read_text().splitlines():
        document = json.loads(line)
        [picture] = task["pictures"](document)
        assert picture.size == (64, 64) and document["question"].endswith("?")
        assert task["exact"](document, [document["answer"]]) == {"exact_match": 1.0}
    for line in (documents / "drawn.jsonl").read_text().splitlines():
        document = json.loads(line)
        wanted, asked = two_turns(task["drawn_words"](document), "")
        assert wanted.startswith("Generate an image of a") and document["answer"] in wanted
        assert document["answer"] not in asked.replace("small or large", "")
        assert task["pictures"](document) == []


@pytest.mark.skipif(ABSENCE is not None, reason=f"lmms-eval: {ABSENCE}")
def test_lmms_evals_runner_takes_both_kinds_of_tasks(parts, documents):
    from lmms_eval import evaluator, models
    from lmms_eval.tasks import TaskManager

    model, tokenizer = assemble(parts / "llama", parts / "siglip", grid=GRID)
    let_draw(model)
    model.save_pretrained("model", tokenizer)
    models.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # or it is our wheel's
    found = evaluator.simple_evaluate(
        "metamorph",
        model_args="pretrained=model",
        batch_size=2,
        device="cpu",
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(EXAMPLES)),
    )
    for task in TASKS:
        assert 0 <= found["results"][task]["exact_match,none"] <= 1
        assert len(found["samples"][task]) == 3
        for sample in found["samples"][task]:
            [counts] = sample["token_counts"]
            drawn = (GRID**2 + 2) * (task == "metamorph_toy_drawn")
            assert drawn < counts["output_tokens"] <= drawn + 64 + 16
