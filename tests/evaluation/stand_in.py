"""What a suite is run with in place of a model: it says and draws what the test tells it to."""

from collections.abc import Iterable
from types import SimpleNamespace

import torch
from PIL import Image

from metamorph.generation.answer import Reply
from metamorph.generation.events import Usage
from metamorph.generation.messages import Drawing
from metamorph.model.vision import VisionEncoder

Said = tuple[str, Image.Image | None]
NOTHING: Said = ("", None)


class StandIn:
    """A model that says and draws what it is told to, one answer after another."""

    def __init__(self, encoder: VisionEncoder, answers: Iterable[Said]):
        self.answers, self.drawn, self.asked = iter(answers), {}, []
        config = SimpleNamespace(tokens_per_image=encoder.grid**2)
        self.model = SimpleNamespace(encoder=encoder, config=config)
        self.device = torch.device("cpu")

    @torch.no_grad()
    def generate(self, conversations, settings):
        self.asked += conversations
        replies = []
        for text, picture in (next(self.answers) for _ in conversations):
            parts = (text,)
            if picture is not None:
                encoder = self.model.encoder
                [features] = encoder(encoder.preprocess([picture]))
                self.drawn[id(features)] = features, picture
                parts = (Drawing(features), text)
            replies.append(Reply(parts, "stop", Usage(1, 0, 1, len(parts) - 1)))
        return replies

    def draw_batch(self, answers, *, seeds, **options):
        assert len(seeds) == len(answers) and "num_inference_steps" in options
        return [[self.drawn[id(features)][1] for features in images] for images in answers]
