"""The language model that the quickstart begins with: fetched once, checked, kept in a cache."""

import os
import shutil
from pathlib import Path

import torch

from metamorph import lock
from metamorph.config.shipped import configs_folder
from metamorph.disk import temporary_beside
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.messages import question
from metamorph.generation.own_answers import PROMPTS
from metamorph.generation.settings import AnswerSettings
from metamorph.model.inference import merge_projections, store_by_columns
from metamorph.model.opening import assemble
from metamorph.model.smollm2 import LICENCE, fetch_smollm2
from metamorph.quickstart.run import ASSETS

FOLDER = "SmolLM2-135M-Instruct"  # in the cache
CONFIGS = configs_folder() / "smollm2"
CHAT_TEMPLATE = CONFIGS / "chat_template.jinja"
GRID = 4
CHECKED_PROMPTS, CHECKED_TOKENS = 3, 24
TIE = 1e-3  # between logits that rounding may tell apart either way
SLOTS, CONTEXT = 32, 512


def cached_language() -> Path:
    """SmolLM2 as a Hugging Face folder in the user's cache; fetched and checked the first time.

    Raises `UserError` if it cannot be had, or does not talk as in transformers.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metamorph"
    folder = cache / FOLDER
    if folder.is_dir():  # it appears whole or not at all
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with lock.locked(cache, "the cache of language models"):
        if not folder.is_dir():
            print(f"fetching {LICENCE}, into {folder}")
            fetched = temporary_beside(folder)
            try:
                fetch_smollm2(fetched)
                check_talk(fetched)
                os.replace(fetched, folder)
            finally:
                shutil.rmtree(fetched, ignore_errors=True)
    return folder


def plain_assistant(language: Path, chat_template: str) -> Assistant:
    """A language model that has seen no picture, as an assistant for text: the encoder only makes
    it a whole model. `chat_template` is a file, or empty for the model's own."""
    model, tokenizer = assemble(
        language, ASSETS / "encoder", grid=GRID, chat_template=chat_template
    )
    merge_projections(model)
    store_by_columns(model)
    return Assistant(model, tokenizer, options=EngineOptions(slots=SLOTS, context=CONTEXT))


@torch.no_grad()
def check_talk(folder: Path) -> None:
    """Raises `UserError` unless a language model's likeliest answers are those in transformers, but
    for ones where two tokens were as likely as each other: processors round differently."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[:CHECKED_PROMPTS]
    settings = AnswerSettings(CHECKED_TOKENS, max_images=0, drawing=None)
    replies = plain_assistant(folder, "").generate([[question(p)] for p in prompts], settings)
    judge, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    for prompt, reply in zip(prompts, replies, strict=True):
        said = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt")
        found = judge.generate(
            **asked, max_new_tokens=CHECKED_TOKENS, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        start = asked["input_ids"].shape[1]
        expected = tokenizer.decode(found.sequences[0, start:], skip_special_tokens=True).strip()
        best = torch.cat(found.logits).topk(2).values  # [tokens, 2]
        if reply.text != expected and (best[:, 0] - best[:, 1]).min() > TIE:
            raise UserError(
                f"{folder}: asked {prompt!r}, the model says {reply.text!r}, but in transformers "
                f"{expected!r}"
            )
