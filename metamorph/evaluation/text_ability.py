"""How well a language model predicts text: what is left of that when it has learned to draw."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from metamorph.config import ModelConfig
from metamorph.data.conversation import ChatEncoder, Document
from metamorph.errors import UserError
from metamorph.evaluation.options import Options
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.teacher_forcing import text_losses
from metamorph.evaluation.text_samples import beginning, text_documents, text_tasks
from metamorph.generation.assistant import Assistant
from metamorph.model.language import Llama
from metamorph.model.tokenizer import open_tokenizer

NATS = "nats per token"


def text_ability(chat: Assistant, options: Options) -> list[Scored]:
    """Cross-entropy of each text of `text_documents`, the mean over its tokens."""
    documents = text_documents(options, chat.encoder)
    model = chat.model
    found = _scored(model.language, documents, chat.encoder, model.config.pad_id, chat.precision)
    return _clustered(found, options)


def language_ability(folder: Path, device: torch.device, options: Options) -> list[Scored]:
    """The same of a language model of Hugging Face, before it has learned anything of pictures: of
    the same texts in the same chat format. Raises `UserError`."""
    tokenizer, ids = open_tokenizer(ModelConfig(language=str(folder)))
    language = Llama.from_pretrained(folder).to(device).eval()
    encoder = ChatEncoder(tokenizer, tokens_per_image=1)  # there is no picture in a text
    documents = text_documents(options, encoder)
    return _clustered(_scored(language, documents, encoder, ids["pad_id"], "fp32"), options)


def perplexity(mean: dict) -> dict:
    """Of a mean of nats per token, with its interval."""
    return mean | {name: math.exp(mean[name]) for name in ("mean", "low", "high")}


def _scored(
    language: Llama,
    documents: Sequence[Document],
    encoder: ChatEncoder,
    pad_id: int,
    precision: str,
) -> list[Scored]:
    for document in documents:
        _check(document, language)
    losses = text_losses(language, documents, pad_id, precision)
    found = []
    for document, (nats, tokens) in zip(documents, losses, strict=True):
        score = {NATS: nats / tokens}
        found.append(Scored(document.sample_id, beginning(document, encoder), score, weight=tokens))
    return found


def _clustered(found: list[Scored], options: Options) -> list[Scored]:
    """Texts of the toy world by the combination that they speak of; any others stand alone."""
    if options.text is not None:
        return found
    combinations = {task.sample.id: task.combination for task in text_tasks(options)}
    return [replace(one, cluster=combinations[one.id]) for one in found]


def _check(document: Document, language: Llama) -> None:
    limit, size = language.config.max_position_embeddings, language.config.vocab_size
    if len(document) > limit:
        raise UserError(
            f"--text: {document.sample_id} has {len(document)} tokens, but the model has positions "
            f"for {limit}"
        )
    if max(document.token_ids) >= size:
        raise UserError(
            f"--text: the chat format has tokens that the model never learned: its vocabulary has "
            f"{size}"
        )
