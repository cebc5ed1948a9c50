"""Which samples of the data a run draws as it goes on."""

import pytest
from PIL import Image

from metamorph.data.conversation import ASSISTANT, USER, ChatEncoder, Sample, Turn
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.errors import UserError
from metamorph.model.tokenizer import add_image_tokens
from metamorph.monitor.sample_sheet import find_requests


class Given:
    """A source of given samples; an error in place of one is raised."""

    def __init__(self, *samples: Sample | Exception):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        if isinstance(sample := self.samples[index], Exception):
            raise sample
        return sample


def asked(question: str, answer: str = "<image>") -> Sample:
    images = (question + answer).count("<image>")
    turns = (Turn(USER, question), Turn(ASSISTANT, answer))
    return Sample("s", turns, (Image.new("RGB", (8, 8)),) * images)


@pytest.fixture
def encoder() -> ChatEncoder:
    tokenizer = build_toy_tokenizer()
    add_image_tokens(tokenizer)
    return ChatEncoder(tokenizer, 4)


def test_what_cannot_be_asked_of_the_model_is_passed_over(encoder):
    """The run goes on: a request beyond the model's positions would end it at its first drawing."""
    source = Given(
        asked("Draw " + "a red circle " * 500),
        OSError("disk on fire"),
        asked("What?", "Nothing."),
        asked("<image>Make it blue."),
        asked("Draw a cat."),
    )
    found = find_requests(source, 2, encoder, longest=100)
    assert [request.text for request in found] == ["<image>Make it blue.", "Draw a cat."]
    assert [len(request.images) for request in found] == [1, 0]
    with pytest.raises(UserError, match="none of the first 5 samples begins with"):
        find_requests(source, 2, encoder, longest=5)
