"""How well a model knows the photographs that it learned of, by the patches that it never saw.

    python examples/photographs/measure.py runs/photographs/instruct/model data/photographs

Every held-out patch is asked about, and every caption drawn, as features. Beside what the model
scores stands what its encoder scores alone: by the mean picture of each photograph, which no
training is needed for.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metamorph.config import DataConfig
from metamorph.data.conversation import Sample
from metamorph.data.images import opened
from metamorph.data.opening import open_source
from metamorph.errors import UserError
from metamorph.evaluation.report import text_table
from metamorph.evaluation.retrieval import cosine_similarities, ranks
from metamorph.evaluation.scene_drawings import LONGEST_TEXT, drawing_answer
from metamorph.evaluation.scored import Scored, means
from metamorph.evaluation.similarity import token_cosines
from metamorph.evaluation.teacher_forcing import visual_cosines
from metamorph.generation.assistant import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings

CONTEXT = 512  # tokens of a prompt with a picture and its answer
AT_ONCE = 42  # pictures


@dataclass(frozen=True)
class Patch:
    """A picture, what is asked about it and should be answered, and the sample that draws it, whose
    request is that of all patches of its photograph."""

    picture: Image.Image
    question: str
    answer: str
    drawn: Sample

    @property
    def request(self) -> str:
        return self.drawn.turns[0].text


def read(file: Path) -> list[Patch]:
    """All patches of a file, in its order. Raises `UserError`."""
    asked = open_source(DataConfig(path=str(file), family="conversations", shuffle=False), 0)
    drawn = open_source(DataConfig(path=str(file), family="captions", shuffle=False), 0)
    patches = []
    for number in range(len(drawn)):
        sample = drawn.sample(number)
        picture = opened(sample.images[0])
        words, answer = asked.sample(number).turns
        with_picture = replace(sample, images=(picture,))
        patches.append(Patch(picture, words.text, answer.text, with_picture))
    return patches


@torch.no_grad()
def encoded(chat: Assistant, patches: Sequence[Patch]) -> Tensor:
    """Features [N, tokens, C], fp32 on the CPU."""
    encoder, found = chat.model.encoder, []
    for start in range(0, len(patches), AT_ONCE):
        pictures = [patch.picture for patch in patches[start : start + AT_ONCE]]
        found.append(encoder(encoder.preprocess(pictures).to(chat.device)).float().cpu())
    return torch.cat(found)


def drawings(chat: Assistant, requests: Sequence[str]) -> Tensor:
    """Features [N, tokens, C] that the model predicts, fp32 on the CPU; zeros where it draws
    nothing."""
    config = chat.model.config
    replies = chat.generate([[question(asked)] for asked in requests], drawing_answer(chat))
    empty = torch.zeros(config.tokens_per_image, config.visual_width)
    return torch.stack([next(iter(reply.features), empty).float().cpu() for reply in replies])


def measure(chat: Assistant, folder: Path) -> list[Scored]:
    """Of each held-out patch what the model, and what its encoder alone, has right."""
    held_out, known = read(folder / "held_out.jsonl"), read(folder / "pairs.jsonl")
    requests = [*dict.fromkeys(patch.request for patch in known)]  # one a photograph
    own = [requests.index(patch.request) for patch in held_out]
    of = torch.tensor([requests.index(patch.request) for patch in known])

    features, seen = encoded(chat, held_out), encoded(chat, known)
    mean = torch.stack([seen[of == number].mean(0) for number in range(len(requests))])
    mean = F.normalize(mean, dim=-1)  # [P, tokens, C], of each photograph
    drawn = drawings(chat, requests)
    by_mean, by_drawing = (ranks(cosine_similarities(features, to), own) for to in (mean, drawn))
    from_drawing, from_mean = (token_cosines(to[own], features) for to in (drawn, mean))
    pictures = [patch.picture for patch in known]
    forced = visual_cosines(chat, [patch.drawn for patch in held_out], pictures)

    conversations = [[question(patch.question, patch.picture)] for patch in held_out]
    replies = chat.generate(conversations, AnswerSettings(LONGEST_TEXT, drawing=None))
    return [
        Scored(
            patch.drawn.id,
            patch.question,
            {
                "question: right": reply.text == patch.answer,
                "question: by the encoder alone": by_mean[number] == 1,
                "drawing: made": bool(drawn[own[number]].any()),
                "drawing: nearest of all captions": by_drawing[number] == 1,
                "cosine: of its caption's drawing": from_drawing[number],
                "cosine: of its photograph's mean": from_mean[number],
                "cosine: after true tokens": forced.model[number],
                "cosine: of the mean of all": forced.mean_baseline[number],
            },
            patch.answer,
            reply.text,
            cluster=patch.request,
        )
        for number, (patch, reply) in enumerate(zip(held_out, replies, strict=True))
    ]


def table(scored: Sequence[Scored]) -> str:
    """A line for each measure: its mean, and the 95 % interval over photographs."""
    rows = []
    for name, found in means(scored, seed=0).items():
        values = [found[key] for key in ("mean", "low", "high")]
        if isinstance(scored[0].scores[name], bool):
            mean, low, high = (f"{100 * value:.1f}%" for value in values)
        else:
            mean, low, high = (f"{value:.3f}" for value in values)
        rows.append(
            (name, str(found["count"]), str(found["clusters"]), f"{mean} ({low} to {high})")
        )
    return text_table(("measure", "patches", "photographs", "mean"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="folder that make_pairs.py wrote")
    arguments = parser.parse_args()
    try:
        model = Assistant.from_pretrained(
            arguments.model, options=EngineOptions(context=CONTEXT), open_when_needed=True
        )
        found = measure(model, arguments.data)
        print(table(found))
    except UserError as error:
        parser.error(str(error))
    for one in found:
        if one.answer != one.expected:
            print(f"expected {one.expected!r}, got {one.answer!r}")
