import pytest
import torch

from bench.runs import serving
from bench.runs.models import TOY
from bench.runs.serving import ANSWERS, FIRST

CPU = torch.device("cpu")
TINY = serving.Case(3, **TOY | {"words": 8, "answer": 4, "dtype": torch.float32})
pytestmark = pytest.mark.usefixtures("few_repeats")


def timed(results):
    return {(r.operation, r.provider): r for r in results if not r.reason.endswith("tokens/s")}


def test_an_entry_verifies_and_times_the_assistant_and_the_server():
    found = timed(TINY.run(CPU))
    assert set(found) == {(op, p.name) for op in (ANSWERS, FIRST) for p in serving.PROVIDERS}
    for line in found.values():
        assert line.status == "ok", line


def test_an_answer_to_another_prompt_is_not_timed(monkeypatch):
    right = serving._Trial._body
    monkeypatch.setattr(serving._Trial, "_body", lambda trial, prompt: right(trial, prompt + "!"))
    found = timed(TINY.run(CPU))
    assert found[ANSWERS, serving.SERVER].status == "failed"
    assert all(found[operation, serving.ASSISTANT].status == "ok" for operation in (ANSWERS, FIRST))


def test_no_server_without_its_packages(monkeypatch):
    monkeypatch.setattr(serving, "missing_package", lambda *names: f"{names[0]} is not installed")
    found = {(line.status, line.reason) for line in TINY.run(CPU)}
    assert found == {("absent", "fastapi is not installed")}
