"""What `metamorph export` writes opens in transformers as it was trained: template, ends, dtype."""

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from metamorph.cli.command import main
from metamorph.data.conversation import ASSISTANT, USER, ChatEncoder, Sample, Turn
from metamorph.errors import UserError
from metamorph.model.opening import assemble
from metamorph.model.tokenizer import all_stops
from metamorph.model.weights import write_json
from tests.data.chat_styles import CHATML, style_tokenizer
from tests.tiny_run import GRID, write_language, write_vision

TURNS = (Turn(USER, "hello"), Turn(ASSISTANT, "what is this?"), Turn(USER, "world"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A MetaMorph that stands for a trained one, with ChatML that its base did not have."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "chatml.jinja").write_text(CHATML)
    parts = write_language(folder / "llama"), write_vision(folder / "siglip")
    style_tokenizer("llama2").save_pretrained(parts[0])
    write_json(parts[0] / "generation_config.json", {"eos_token_id": [2, 7]})
    model, tokenizer = assemble(*parts, grid=GRID, chat_template=str(folder / "chatml.jinja"))
    model.bfloat16().save_pretrained(folder / "model", tokenizer)
    return folder, model, tokenizer


@pytest.mark.parametrize("form", ["hf", "official"])
def test_transformers_finds_the_form_that_was_trained(trained, tmp_path, form):
    folder, model, tokenizer = trained
    out = tmp_path / "out"
    assert main(["export", str(folder / "model"), str(out), "--format", form]) == 0
    found = AutoTokenizer.from_pretrained(out)
    messages = [{"role": turn.role, "content": turn.text} for turn in TURNS]
    encoder = ChatEncoder(tokenizer, GRID**2)
    written = found.apply_chat_template(messages, return_dict=False, add_generation_prompt=True)
    assert written == encoder.encode_prompt(Sample("s", TURNS)).token_ids
    written = found.apply_chat_template(messages[:2], return_dict=False)
    assert written == encoder.encode(Sample("s", TURNS[:2])).token_ids

    ends = model.config.eos_ids
    assert {2, 7, encoder.end_of_turn} == set(ends)  # of its folder, and of the template
    special = (found.bos_token_id, ends, found.pad_token_id)
    for config in (GenerationConfig.from_pretrained(out), AutoConfig.from_pretrained(out)):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == special
    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16
    llama = LlamaForCausalLM.from_pretrained(out)
    assert llama.dtype == torch.bfloat16 and llama.generation_config.eos_token_id == ends


@pytest.mark.parametrize("written", [7, [7], [7, 999_999]])
def test_ends_are_read_from_the_generation_config(trained, tmp_path, written):
    """One id or several; one beyond the vocabulary, as some folders have, ends nothing."""
    write_json(tmp_path / "generation_config.json", {"eos_token_id": written})
    assert all_stops([2], tmp_path, trained[2]) == [2, 7]


@pytest.mark.parametrize("written", ["</s>", [7, "8"], True, 1.5, {"id": 7}])
def test_ends_that_are_no_ids_are_refused(trained, tmp_path, written):
    write_json(tmp_path / "generation_config.json", {"eos_token_id": written})
    with pytest.raises(UserError, match="generation_config.json: eos_token_id is .*expected a tok"):
        all_stops([2], tmp_path, trained[2])
