"""A model's own answers to plain prompts, as data to go on training with.

A language model that learns to see and to draw may forget how it talked. Its own answers, mixed
into the data, hold it to that, whatever it was trained on before (self-distillation). They are
drawn at temperature 1: of all models, it is itself that gives such answers the least cross-entropy,
but for what comes of leaving out those that did not end.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from metamorph.disk import write_text
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings, Sampling

# A prompt a line, written for this project; CC0-1.0. Nothing is trained on the held-out ones.
PROMPTS = Path(__file__).parent / "chat_prompts.txt"
HELD_OUT_PROMPTS = Path(__file__).parent / "held_out_chat_prompts.txt"


def write_own_answers(
    assistant: Assistant, prompts: Sequence[str], path: Path, max_new_tokens: int, samples: int = 1
) -> int:
    """Writes `path`, a file of conversations as `data.path` takes it: of each prompt so many
    answers, each another sample of what the model may say. Returns how many; answers that are empty
    or did not end by themselves are left out.

    Raises `UserError` if none did.
    """
    asked = [(prompt, number) for prompt in prompts for number in range(samples)]
    answers = [
        assistant.submit(
            [question(prompt)],
            AnswerSettings(max_new_tokens, _sampling(prompt, number), max_images=0, drawing=None),
        )
        for prompt, number in asked
    ]
    with tqdm(total=len(answers), desc=path.name, mininterval=1) as progress:
        while assistant.advance():
            progress.update(sum(answer.finished for answer in answers) - progress.n)
    lines = []
    for (prompt, _), answer in zip(asked, answers, strict=True):
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


def _sampling(prompt: str, number: int) -> Sampling:
    """Of a seed of its own: with one for all prompts, each answer would have the same luck at the
    same place, as if all of them were drawn from a few streams."""
    return Sampling(temperature=1.0, seed=zlib.crc32(f"{number} {prompt}".encode()))
