import pytest

from metamorph.data.conversation import ChatEncoder
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.model.opening import add_image_tokens

TOKENS_PER_IMAGE = 4


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = build_toy_tokenizer()
    add_image_tokens(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def encoder(tokenizer) -> ChatEncoder:
    return ChatEncoder(tokenizer, TOKENS_PER_IMAGE)
