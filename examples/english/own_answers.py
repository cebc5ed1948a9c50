"""A language model's own answers to plain prompts, to be mixed into what it learns about pictures.

    python examples/english/own_answers.py models/SmolLM2-135M-Instruct data/english

Writes chat.jsonl, chat_held_out.jsonl and a mixture of the first with English scenes.
"""

import argparse
import shutil
from pathlib import Path

from metamorph import Assistant
from metamorph.config.shipped import configs_folder
from metamorph.generation.engine import EngineOptions
from metamorph.generation.own_answers import (
    HELD_OUT_PROMPTS,
    LONGEST_ANSWER,
    PROMPTS,
    write_own_answers,
)
from metamorph.model import assemble
from metamorph.model.inference import merge_projections, store_by_columns
from metamorph.quickstart.run import ASSETS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("language", type=Path, help="folder of a Llama with a chat template")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--max-new-tokens", type=int, default=LONGEST_ANSWER, help="of an answer")
    arguments = parser.parse_args()
    # The encoder only makes it a whole model: nothing is shown, and nothing may be drawn.
    model, tokenizer = assemble(arguments.language, ASSETS / "encoder", grid=4)
    merge_projections(model)
    store_by_columns(model)
    assistant = Assistant(model, tokenizer, options=EngineOptions(slots=32, context=512))
    for path, name in ((PROMPTS, "chat.jsonl"), (HELD_OUT_PROMPTS, "chat_held_out.jsonl")):
        prompts = path.read_text(encoding="utf-8").splitlines()
        target = arguments.output / name
        written = write_own_answers(assistant, prompts, target, arguments.max_new_tokens)
        print(f"{target}: {written} of {len(prompts)} answers ended by themselves")
    mixture = configs_folder() / "mixtures" / "english.yaml"
    print(shutil.copy(mixture, arguments.output))
