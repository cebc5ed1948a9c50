"""The folder of answers to a file of prompts, which a second run goes on with.

manifest.json   what the answers are made of and by, so that no two ways are mixed
answers.jsonl   a JSON object for each prompt, in the order in which they were answered
ID-N.png        picture N of an answer, from 1, with the features that it was drawn from
run.lock        while a run goes on: which process it is
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metamorph import lock
from metamorph.disk import append, atomic_path, write_text
from metamorph.errors import UserError, shown
from metamorph.generation.answer import Reply
from metamorph.generation.flat_settings import flat
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import png_bytes
from metamorph.generation.prompt_files import WrittenPrompt

MANIFEST, ANSWERS = "manifest.json", "answers.jsonl"
NOT_IN_NAMES = re.compile(r"[^\w.-]|^[.-]", re.ASCII)
HASHED = re.compile(r"-[0-9a-f]{12}$")  # how a name ends that is not all of its id
LONGEST_NAME = 100  # characters of a prompt's id in the name of a picture
MODEL_FILES = (".safetensors", ".json", ".jinja")


class AnswerFolder:
    """`answered` are the ids of the prompts that need no answer any more."""

    def __init__(self, folder: Path, prompts: Sequence[WrittenPrompt]):
        self.path, self.folder = folder / ANSWERS, folder
        self._names = file_names([prompt.id for prompt in prompts])
        self.answered = self._mend()

    def _mend(self) -> set[str]:
        """Leaves the first whole answer to each prompt in the file, and nothing else: what a killed
        run has torn or a prompt that failed is answered anew."""
        written = self.path.read_bytes() if self.path.exists() else b""
        kept: dict[str, bytes] = {}
        for line in written.split(b"\n"):
            name = _answered(line)
            if name in self._names:
                kept.setdefault(name, line)
        whole = b"".join(line + b"\n" for line in kept.values())
        if whole != written:
            write_text(self.path, whole.decode())
        return set(kept)

    def write(self, prompt: WrittenPrompt, reply: Reply) -> None:
        """An answer whose pictures are drawn; they come first, so that no line names a picture
        that is not there."""
        parts, pictures = [], 0
        for part in reply.parts:
            if isinstance(part, Drawing):
                pictures += 1
                name = f"{self._names[prompt.id]}-{pictures}.png"
                with atomic_path(self.folder / name) as path:
                    path.write_bytes(png_bytes(part))
                parts.append({"type": "image_url", "image_url": {"url": name}})
            else:
                parts.append({"type": "text", "text": part})
        self._append(
            prompt,
            text=reply.text,
            parts=parts,
            finish_reason=reply.finish_reason,
            usage=asdict(reply.usage),
        )
        self.answered.add(prompt.id)

    def write_failure(self, prompt: WrittenPrompt, error: str) -> None:
        self._append(prompt, error=error)

    def _append(self, prompt: WrittenPrompt, **values: Any) -> None:
        settings = flat(prompt.settings)
        line = {"id": prompt.id, **values, "seed": settings.pop("seed"), "settings": settings}
        append(self.path, json.dumps(line).encode() + b"\n")


def _answered(line: bytes) -> str | None:
    """The id of the prompt that a line of `answers.jsonl` answers, if it does."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or "error" in values or "parts" not in values:
        return None
    return values.get("id") if isinstance(values.get("id"), str) else None


@contextmanager
def open_answers(
    folder: Path, manifest: dict[str, Any], prompts: Sequence[WrittenPrompt]
) -> Generator[AnswerFolder]:
    """The folder, this process's alone while the body runs; made if it is not there.

    Raises `UserError` unless it is new, empty, or was begun with the same manifest.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: {folder} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with lock.locked(folder, "--output"):
        if (folder / MANIFEST).exists():
            _check_same(folder, manifest)
        elif any(not _is_ours(path.name) for path in folder.iterdir()):
            raise UserError(
                f"--output: {folder} holds something else, expected a new or an empty folder, or "
                f"one that this command began"
            )
        else:
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        yield AnswerFolder(folder, prompts)


def _is_ours(name: str) -> bool:
    """Whether a file may be there before the manifest is."""
    return name == lock.FILE or name.startswith(f".{MANIFEST}.")


def _check_same(folder: Path, manifest: dict[str, Any]) -> None:
    path = folder / MANIFEST
    try:
        before = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"--output: {path} is not readable as JSON; give a new folder") from error
    if not isinstance(before, dict):
        raise UserError(f"--output: {path} holds {shown(before)}; give a new folder")
    answers = folder / ANSWERS
    if before.keys() == manifest.keys() and not (answers.exists() and answers.stat().st_size):
        write_text(path, json.dumps(manifest, indent=1) + "\n")  # nothing would be mixed
        return
    for key, value in json.loads(json.dumps(manifest)).items():
        was = before.get(key)
        if was != value:
            how = f"{key} {shown(was)}, and it is {shown(value)} now"
            if key in ("prompts", "model"):  # as a digest
                how = f"other {key} than these" if key == "prompts" else "another model than this"
            raise UserError(f"--output: {folder} was made with {how}; give a new folder")


def digest_of_model(*folders: Path) -> str:
    """What tells a model from another without reading its weights: the names, sizes and times of
    the files below its folders."""
    listed = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix in MODEL_FILES and path.is_file()
    ]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def file_names(ids: Sequence[str]) -> dict[str, str]:
    """What the pictures of each id are called: the id, as far as every file system takes it, with
    a part of its SHA-256 where that is not all of it or may be taken for another's."""
    plain = {name: NOT_IN_NAMES.sub("_", name)[:LONGEST_NAME] for name in ids}
    shared = Counter(name.casefold() for name in plain.values())
    return {
        name: safe
        if safe == name and shared[safe.casefold()] == 1 and not HASHED.search(name)
        else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        for name, safe in plain.items()
    }
