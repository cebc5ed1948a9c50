"""What `metamorph export` writes opens in transformers as it was trained: template, ends, dtype."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
)

from metamorph.cli.command import main
from metamorph.data.conversation import ASSISTANT, USER, ChatEncoder, Sample, Turn
from metamorph.errors import UserError
from metamorph.model.language import Llama
from metamorph.model.opening import assemble
from metamorph.model.saved_tokenizer import read_saved_tokenizer
from metamorph.model.tokenizer import add_image_tokens, all_stops
from metamorph.model.weights import read_tokenizer, write_json
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


def test_a_qwen_without_a_begin_of_text_and_with_a_padded_table(tmp_path):
    """Its image tokens take rows that no token has; both ends are known, after export too."""
    folder, vision = tmp_path / "qwen", write_vision(tmp_path / "siglip")
    write_language(folder, model_type="qwen2", vocab_size=512, tie_word_embeddings=True)
    tokenizer = style_tokenizer("qwen3")
    tokenizer.save_pretrained(folder)
    names = ["<|im_end|>", "<|endoftext|>"]
    ends = tokenizer.convert_tokens_to_ids(names)
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "bos_token_id": ends[1]})
    size = len(tokenizer)
    assert size + 2 < 512
    before = Llama.from_pretrained(folder).model.embed_tokens.weight

    model, tokenizer = assemble(folder, vision, grid=GRID)
    config = model.config
    assert config.added_ids == [size, size + 1] and config.language.vocab_size == 512
    assert sorted(config.eos_ids) == sorted(ends) and config.pad_id == ends[1]
    table = model.language.output_weight
    assert table is model.language.model.embed_tokens.weight and table.shape == (512, 32)
    others = [row for row in range(512) if row not in config.added_ids]
    assert torch.equal(table[others], before[others])
    torch.testing.assert_close(table[size], before[others].mean(0))

    model.save_pretrained(tmp_path / "model", tokenizer)
    saved = read_saved_tokenizer(tmp_path / "model")
    assert add_image_tokens(saved) == add_image_tokens(read_tokenizer(tmp_path / "model"))
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.bos_token, found.eos_token) == (None, "<|im_end|>")
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.bos_token_id, settings.eos_token_id) == (None, config.eos_ids)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.lm_head.weight is exported.model.embed_tokens.weight
    assert torch.equal(exported.lm_head.weight, table)
