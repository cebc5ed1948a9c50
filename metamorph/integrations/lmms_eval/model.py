"""The model `metamorph` of lmms-eval: requests answered by an `Assistant`, many at once."""

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from metamorph.devices import resolve_device
from metamorph.errors import UserError, shown, within
from metamorph.generation.answer import Reply
from metamorph.generation.assistant import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.messages import SYSTEM, Drawing, Message
from metamorph.generation.picture_files import png_bytes
from metamorph.generation.settings import AnswerSettings, DrawingSettings, check_whole
from metamorph.integrations.lmms_eval.requests import Asked, message, parts
from metamorph.integrations.lmms_eval.settings import OF_OTHER_MODELS, answer_settings
from metamorph.tokens import IMAGE_PLACEHOLDER

UNDER_WAY = 8  # requests whose pictures are in memory, for each slot of the engine
LONGEST_WORDS = 64  # tokens beside the picture of a request for one
GENERATION_PROMPT = "Generate an image that helps to answer this question: {question}"

log = logging.getLogger(__name__)


class Model(lmms):
    """A MetaMorph model for tasks of `generate_until` and `generate_visual_cot`.

    Arguments are those of `--model_args`, and `batch_size` and `device` of lmms-eval itself:

    pretrained: folder of the model.
    batch_size: answers that are made at once; none depends on those beside it.
    decoder, precision, weights: as in `Assistant.from_pretrained`.
    context: most tokens of a prompt with its answer.
    system_prompt: what the model is told before any question.
    max_new_tokens, seed: of tasks that name none.
    generation_prompt_template: the request for a picture of tasks that have none; `{question}` is
        their question.
    reencode: read what was drawn from its pixels, not as the features that the model predicted.
    save_to: folder for what was drawn, `TASK/DOCUMENT.png`.

    Raises `UserError` for an argument that is unknown or cannot be followed.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        batch_size: Any = 1,
        device: str | None = None,
        *,
        decoder: str | None = None,
        precision: str = "fp32",
        weights: str = "",
        context: int | None = None,
        system_prompt: str = "",
        max_new_tokens: int = 256,
        seed: int = 0,
        generation_prompt_template: str = GENERATION_PROMPT,
        reencode: bool = False,
        save_to: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            *known, _ = inspect.signature(Model).parameters
            raise UserError(
                f"model_args: unknown {shown(min(unknown))}, expected some of {', '.join(known)}"
            )
        texts = {
            **{"pretrained": pretrained, "decoder": decoder, "precision": precision},
            **{"weights": weights, "system_prompt": system_prompt, "save_to": save_to},
            "generation_prompt_template": generation_prompt_template,
        }
        for name, value in texts.items():  # lmms-eval makes numbers and truth values of some
            if not isinstance(value, str | None):
                raise UserError(f"model_args: {name}: expected text, got {shown(value)}")
        if not pretrained:
            raise UserError("model_args: expected pretrained=FOLDER, the folder of the model")
        if not isinstance(reencode, bool):
            raise UserError(f"model_args: reencode: expected true or false, got {shown(reencode)}")
        self.draws_pixels = reencode or save_to is not None  # for all else features are enough
        if decoder is not None and not self.draws_pixels:
            raise UserError("model_args: decoder goes with reencode=true or save_to=FOLDER only")
        slots = int(batch_size) if str(batch_size).isdecimal() else batch_size
        check_whole("batch_size", slots, least=1)
        answer_settings({}, max_new_tokens=max_new_tokens, seed=seed)  # refused now, if at all
        self.batch_size: int = slots
        self.device = resolve_device(device or "auto")  # lmms-eval reads it, of several processes
        self.assistant = Assistant.from_pretrained(
            pretrained,
            self.device,
            decoder=decoder,
            precision=precision,
            weights=weights,
            options=EngineOptions(slots=slots, context=context),
            open_when_needed=True,
        )
        if self.draws_pixels and self.assistant.queue is None:
            raise UserError(
                f"model_args: reencode and save_to need pixels, but {pretrained} has no decoder/; "
                f"name one that was trained apart by decoder=FOLDER"
            )
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.system = system_prompt
        self.template = generation_prompt_template
        self.reencode = reencode
        self.save_to = None if save_to is None else Path(save_to)
        self._warned: set[str] = set()

    def generate_until(self, requests: list) -> list:
        """A `GenerationResult` for each request, text alone: no picture is begun."""
        results = []
        for some in self._batches(self._read(requests)):
            turns = (
                (each, self._messages(each, each.words, each.pictures()), each.settings)
                for each in some
            )
            results += map(_result, self._answer(turns))
        return results

    def generate_visual_cot(self, requests: list) -> list:
        """A `GenerationResult` for each request, which is first asked for a picture and then, with
        that picture, its question. Where none is drawn the words that came instead are the answer,
        as they are of lmms-eval's own models."""
        results, undrawn = [], 0
        for some in self._batches(self._read(requests, draws=True)):
            seen = [each.pictures() for each in some]
            asked = [parts(each.words, self.template) for each in some]
            first = self._answer(
                (each, self._messages(each, wanted, pictures), self._to_draw(each.settings))
                for each, (wanted, _), pictures in zip(some, asked, seen, strict=True)
            )
            turns = []
            for each, (_, words), pictures, reply in zip(some, asked, seen, first, strict=True):
                for drawing in reply.drawings:  # one, or none
                    self._save(each, drawing)
                    messages = self._messages(each, words, pictures, drawing)
                    turns.append((each, messages, each.settings))
            second = iter(self._answer(turns))
            results += [_result(reply, *islice(second, len(reply.drawings))) for reply in first]
            undrawn += len(some) - len(turns)
        if undrawn:
            log.warning("nothing was drawn for %d of %d requests", undrawn, len(requests))
        return results

    def loglikelihood(self, requests: list) -> list:
        raise NotImplementedError(
            "metamorph: no loglikelihood is given; lmms-eval's interface wants a log-probability, "
            "and its multiple_choice tasks take the choice whose value is the least"
        )

    def generate_until_multi_round(self, requests: list) -> list:
        raise NotImplementedError("metamorph: tasks of several rounds are not answered")

    def clean(self) -> None:
        """Gives weights and cache back; lmms-eval calls it before it judges the answers."""
        del self.assistant
        super().clean()

    def _read(self, requests: list, draws: bool = False) -> list[Asked]:
        """All requests, checked before the first is answered. Raises `UserError`."""
        found, repeats = [], Counter()
        for request in requests:
            words, wanted, to_visual, doc_id, task, split = request.args
            name = f"task {task}, document {doc_id}"
            if draws:  # as the output type of the task says anyway
                wanted = {key: value for key, value in wanted.items() if key != "visual_cot"}
            for key in sorted(OF_OTHER_MODELS & wanted.keys()):
                self._warn(key, f"{name}: {key} is for other models, and changes nothing here")
            # lmms-eval repeats a request to see how far its answers differ.
            repeat = repeats[id(request)]
            repeats[id(request)] += 1
            with within(name):
                settings = answer_settings(
                    wanted, max_new_tokens=self.max_new_tokens, seed=self.seed, repeat=repeat
                )
            visuals = partial(_visuals, to_visual, self.task_dict[task][split], doc_id)
            stem = f"{task}/{doc_id}-{repeat}" if repeat else f"{task}/{doc_id}"
            found.append(Asked(name, stem, words, settings, visuals))
        return found

    def _batches(self, asked: list[Asked]) -> Iterator[list[Asked]]:
        """As many at a time as keep the engine busy, with a line of progress."""
        size = UNDER_WAY * self.batch_size
        with tqdm(total=len(asked), desc="metamorph", disable=self.rank != 0) as bar:
            for start in range(0, len(asked), size):
                some = asked[start : start + size]
                yield some
                bar.update(len(some))

    def _to_draw(self, settings: AnswerSettings) -> AnswerSettings:
        """Those of the turn that is a picture, of a request with these."""
        return AnswerSettings(
            self.assistant.model.config.tokens_per_image + LONGEST_WORDS,
            settings.sampling,
            max_images=1,
            drawing=DrawingSettings() if self.draws_pixels else None,
        )

    def _messages(
        self, asked: Asked, words: str, pictures: list, drawing: Drawing | None = None
    ) -> list[Message]:
        """A conversation that ends with these words and pictures."""
        turn, places_fit = message(words, pictures, drawing)
        if not places_fit:
            found = f"{words.count(IMAGE_PLACEHOLDER)} {IMAGE_PLACEHOLDER} in the words"
            self._warn(
                "places", f"{asked.name}: not as many pictures as {found}, so they come first"
            )
        return [Message(SYSTEM, self.system), turn] if self.system else [turn]

    def _answer(self, turns: Iterable[tuple[Asked, list[Message], AnswerSettings]]) -> list[Reply]:
        """Replies in order. An answer ends where the context does. Raises `UserError`."""
        conversations, settings = [], []
        for asked, messages, wanted in turns:
            with within(asked.name):
                length = len(self.assistant.reader.document(messages))
                room = self.assistant.engine.context - length
                if room < 1:
                    raise UserError(f"a prompt of {length} tokens leaves no room in the context")
            if room < wanted.max_new_tokens:
                cut = f"max_new_tokens {wanted.max_new_tokens} is cut to {room}"
                self._warn("context", f"{asked.name}: {cut}, which the context leaves")
            conversations.append(messages)
            settings.append(replace(wanted, max_new_tokens=min(wanted.max_new_tokens, room)))
        return self.assistant.generate(conversations, settings, reencode=self.reencode)

    def _save(self, asked: Asked, drawing: Drawing) -> None:
        """Writes the picture, if one is to be. Raises `UserError`."""
        if self.save_to is None:
            return
        path = self.save_to / f"{asked.stem}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(drawing))
        except OSError as error:
            raise UserError(f"save_to: cannot write {path}: {error.strerror}") from error

    def _warn(self, kind: str, sentence: str) -> None:
        """Says what concerns many documents of the first of them alone."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s (said once)", sentence)


def _visuals(to_visual: Callable[[Any], Any], documents: Any, doc_id: Any) -> Any:
    return to_visual(documents[doc_id])


def _result(*replies: Reply) -> GenerationResult:
    """The text of the last turn and what all of them cost; a picture counts as its tokens."""
    usages = [reply.usage for reply in replies]
    counts = TokenCounts(
        input_tokens=sum(usage.prompt_tokens for usage in usages),
        output_tokens=sum(usage.answer_tokens for usage in usages),
    )
    return GenerationResult(replies[-1].text, counts)
