"""A stage trains every family of language models, with what a Llama has not."""

import pytest
import torch

from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import replace_language, tiny_config

OWN = {"mistral": (), "qwen2": ("q_proj.bias", "k_proj.bias", "v_proj.bias"),
       "qwen3": ("q_norm.weight", "k_norm.weight")}  # fmt: skip


def moved(before: MetaMorph, after: MetaMorph) -> set[str]:
    found = after.state_dict()
    return {name for name, old in before.state_dict().items() if not torch.equal(old, found[name])}


@pytest.mark.parametrize("model_type", OWN)
def test_instruct_moves_all_and_align_nothing_of_the_blocks(folder, model_type):
    """From tied embeddings, as the small models of these families have them."""
    replace_language(folder, model_type, tie_word_embeddings=True)
    align = MetaMorph.from_pretrained(train(tiny_config(folder, "align", steps=1)))
    config = tiny_config(folder, "instruct", steps=2, weight_decay=0.1)
    model = MetaMorph.from_pretrained(train(config))
    assert model.config.language.model_type == model_type
    names = moved(align, model)
    parameters = {name for name, _ in model.language.named_parameters(prefix="language")}
    assert parameters <= names
    own = {name for name in parameters if name.endswith(OWN[model_type])}
    assert len(own) == 2 * len(OWN[model_type])
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_two_processes_share_out_biases_and_train_the_same(folder):
    replace_language(folder, "qwen2")
    config = tiny_config(folder, "instruct", steps=2, rows_per_step=2)
    expected = MetaMorph.from_pretrained(train(config)).state_dict()
    losses = [
        (line["text_loss"], line["gradient_norm"]) for line in read_metrics(folder / "instruct")
    ]
    config.output = str(folder / "two")
    run_processes(2, train, config)
    found = MetaMorph.from_pretrained(folder / "two/model").state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)
    again = [(line["text_loss"], line["gradient_norm"]) for line in read_metrics(folder / "two")]
    assert [*map(list, again)] == [pytest.approx(values, rel=1e-5) for values in map(list, losses)]
