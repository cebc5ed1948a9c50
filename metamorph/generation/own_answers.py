"""A model's own answers to plain prompts, as data to go on training with.

A language model that learns to see and to draw may forget how it talked. Its own answers, mixed
into the data, hold it to that, whatever it was trained on before (self-distillation).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from metamorph.disk import write_text
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings

# A prompt a line, written for this project; CC0-1.0. Nothing is trained on the held-out ones.
PROMPTS = Path(__file__).parent / "chat_prompts.txt"
HELD_OUT_PROMPTS = Path(__file__).parent / "held_out_chat_prompts.txt"
LONGEST_ANSWER = 128  # tokens


def write_own_answers(
    assistant: Assistant, prompts: Sequence[str], path: Path, max_new_tokens: int
) -> int:
    """Writes `path`, a file of conversations as `data.path` takes it, one of each prompt and the
    likeliest answer. Returns how many; answers that are empty or did not end by themselves are left
    out.

    Raises `UserError` if none did.
    """
    settings = AnswerSettings(max_new_tokens, max_images=0, drawing=None)
    answers = [assistant.submit([question(prompt)], settings) for prompt in prompts]
    with tqdm(total=len(prompts), desc=path.name, mininterval=1) as progress:
        while assistant.advance():
            progress.update(sum(answer.finished for answer in answers) - progress.n)
    lines = []
    for prompt, answer in zip(prompts, answers, strict=True):
        reply = answer.reply
        if reply.error:
            raise UserError(reply.error)
        if reply.finish_reason == "stop" and reply.text:
            turns = {"from": "human", "value": prompt}, {"from": "gpt", "value": reply.text}
            lines.append(json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")
    if not lines:
        raise UserError(
            f"{path}: no answer to {len(prompts)} prompts ended within {max_new_tokens} tokens"
        )
    write_text(path, "".join(lines))
    return len(lines)
