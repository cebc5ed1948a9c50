"""Perplexity is that of Hugging Face's Llama on the same tokens."""

import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from metamorph.config import ModelConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.errors import UserError
from metamorph.evaluation.options import Options
from metamorph.evaluation.text_ability import NATS, language_ability, perplexity
from metamorph.evaluation.text_samples import LONGEST, text_documents
from metamorph.model.tokenizer import open_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(parts):
    tokenizer, _ = open_tokenizer(ModelConfig(language=str(parts / "llama")))
    return ChatEncoder(tokenizer, 1)


def test_of_responses_every_token_counts_and_of_requests_none(parts, encoder):
    options = Options(count=5)
    samples = language_ability(parts / "llama", CPU, options)
    reference = LlamaForCausalLM.from_pretrained(parts / "llama")
    for sample, document in zip(samples, text_documents(options, encoder), strict=True):
        ids = torch.tensor([document.token_ids])
        labels = ids.masked_fill(~torch.tensor([document.supervised]), -100)
        with torch.no_grad():
            expected = reference(ids, labels=labels).loss.item()
        assert sample.scores[NATS] == pytest.approx(expected, rel=1e-4)
        assert sample.weight == sum(document.supervised) and sample.id == document.sample_id


def test_a_plain_text_is_read_by_paragraphs(encoder, tmp_path):
    text = "A circle is round.\nSo is a ball.\n\n\nRed <image> and blue.\r\n\r\n" + "far " * 3000
    (tmp_path / "a.txt").write_text(text, newline="")
    documents = text_documents(Options(text=tmp_path / "a.txt"), encoder)
    words = [encoder.decode(document.token_ids) for document in documents[:2]]
    assert words == ["A circle is round.\nSo is a ball.", "Red <image> and blue."]
    assert len(documents) > 3 and max(map(len, documents)) == LONGEST + 1
    for document in documents:  # the first token says that a text begins
        assert document.supervised == [False] + [True] * (len(document) - 1)
        assert not document.spans
    assert len({document.sample_id for document in documents}) == len(documents)
    assert text_documents(Options(2, text=tmp_path / "a.txt"), encoder)[1] == documents[1]


def test_conversations_are_read_as_training_reads_them(encoder, tmp_path):
    turns = [{"from": "human", "value": "Say: a circle."}, {"from": "gpt", "value": "a circle"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    [document] = text_documents(Options(text=tmp_path / "a.jsonl"), encoder)
    said = [t for t, counts in zip(document.token_ids, document.supervised, strict=True) if counts]
    assert encoder.decode(said) == "a circle"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", " \n\n ", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        ("a.jsonl", '{"conversations": []}\n', "has no turns"),
        ("a.jsonl", "not json\n", "not valid JSON"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(encoder, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        text_documents(Options(text=path), encoder)


def test_pictures_are_refused(encoder, tmp_path):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A ball."}]
    record = {"image": "a.png", "conversations": turns}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="has pictures, expected text alone"):
        text_documents(Options(text=tmp_path / "a.jsonl"), encoder)


def test_perplexity_is_e_to_the_mean():
    found = perplexity({"mean": math.log(8), "low": math.log(4), "high": math.log(16), "count": 3})
    assert found == pytest.approx({"mean": 8, "low": 4, "high": 16, "count": 3})
