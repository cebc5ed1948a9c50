"""Texts on which perplexity is measured: conversations, or any plain text."""

import hashlib
from dataclasses import replace
from pathlib import Path

from metamorph.config import DataConfig
from metamorph.data.conversation import ChatEncoder, Document
from metamorph.data.opening import open_source
from metamorph.data.toy.tasks import Task
from metamorph.errors import SampleError, UserError
from metamorph.evaluation.options import Options
from metamorph.evaluation.toy_tasks import tasks_of
from metamorph.folders import check_file
from metamorph.tokens import BEGIN_OF_TEXT

CONVERSATIONS = (".jsonl", ".json")
LONGEST = 1024  # tokens of a sample: a paragraph that is longer becomes several


def text_documents(options: Options, encoder: ChatEncoder) -> list[Document]:
    """The first samples of the file `options.text`, by names that say what they hold: conversations
    of JSON lines, of which responses count, or the paragraphs of a plain text, of which everything
    does. Without a file, tasks of the toy world without pictures.

    Raises `UserError` for a file that cannot be read, holds pictures, or holds nothing.
    """
    path, count = options.text, options.count
    if path is None:
        return [encoder.encode(task.sample) for task in text_tasks(options)]
    check_file(path, "a text file, or conversations as .jsonl or .json")
    if path.suffix.lower() in CONVERSATIONS:
        documents = _conversations(path, count, encoder)
    else:
        documents = _paragraphs(path, count, encoder)
    if not documents:
        raise UserError(f"--text: {path} holds no text")
    return documents


def text_tasks(options: Options) -> list[Task]:
    """What is measured without a file."""
    return tasks_of("text", options.count, source=options.source)


def _conversations(path: Path, count: int, encoder: ChatEncoder) -> list[Document]:
    try:
        records = open_source(DataConfig(source="jsonl", path=str(path), shuffle=False), 0)
        documents = []
        for index in range(min(count, len(records))):
            sample = records.sample(index)
            if sample.images:
                raise UserError(f"--text: {sample.where} has pictures, expected text alone")
            name = _name("".join(turn.text for turn in sample.turns), index)
            documents.append(encoder.encode(replace(sample, id=name)))
    except SampleError as error:
        raise UserError(f"--text: {path}: {error}") from error
    except UserError as error:
        raise UserError(f"--text: {str(error).removeprefix('--text: ')}") from error
    return documents


def _paragraphs(path: Path, count: int, encoder: ChatEncoder) -> list[Document]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text: {path} cannot be read as UTF-8 text: {error}") from error
    documents: list[Document] = []
    first = encoder.vocabulary.get(BEGIN_OF_TEXT)  # of Llama 3; others begin without
    for paragraph in filter(str.strip, text.replace("\r\n", "\n").split("\n\n")):
        ids = encoder.text_ids("", "", paragraph.strip())
        for start in range(0, len(ids), LONGEST):
            if len(documents) == count:
                return documents
            part = ids[start : start + LONGEST]
            before = [] if first is None else [first]
            # The first token of all has nothing before it that would predict it.
            supervised = [False] * len(before) + [bool(before)] + [True] * (len(part) - 1)
            name = _name(f"{start} {paragraph.strip()}", len(documents))
            documents.append(Document(name, before + part, supervised))
    return [document for document in documents if any(document.supervised)]


def _name(text: str, number: int) -> str:
    """Of a sample: equal ones stand at the same place and hold the same."""
    return f"text-{number}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def beginning(document: Document, encoder: ChatEncoder) -> str:
    """How a text begins, for people."""
    return encoder.decode(document.token_ids[:24])
