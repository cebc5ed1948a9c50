"""Continuous batching: a queue of requests, a fixed number of slots, prefill between decode steps.

The device does the same work in every step, whatever the sequences are at; the host queues steps,
reads what they emitted some steps later, and gives the slots of finished sequences to others.
"""

from collections import abc, deque
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from metamorph.config.keys import PrefillAttention
from metamorph.errors import UserError
from metamorph.generation.cache import KeyValueCache
from metamorph.generation.decode_step import DecodeStep
from metamorph.generation.events import FinishReason
from metamorph.generation.graphs import Programs
from metamorph.generation.history import Emitted, History
from metamorph.generation.job import Job
from metamorph.generation.prefill import Piece, cut, prefill
from metamorph.generation.prompt import Prompt, check_prompt, common_length
from metamorph.generation.sequence import Mode, Sequence, Step
from metamorph.generation.settings import GREEDY, Sampling, check_whole
from metamorph.generation.slots import Slots
from metamorph.model.inference import RotaryTable
from metamorph.model.unified import MetaMorph

LONGEST_CONTEXT = 8192  # tokens of a slot unless more are asked for: a cache takes gigabytes


@dataclass(frozen=True)
class EngineOptions:
    """How much at once.

    Attributes:
        slots: sequences that are decoded together.
        context: tokens that a slot holds, prompt and answer; None is what the model has positions
            for, 8192 at most.
        read_every: decode steps between two looks of the host at what came out; None is 8 on a GPU,
            and 4 on a CPU, where a step that turns out not to be needed costs more than a look.
        prefill_chunk: tokens of prompts that are read between decode steps.
        prefill_attention: "fp8" attends in float8 where a prompt is read from its beginning.
    """

    slots: int = 16
    context: int | None = None
    read_every: int | None = None
    prefill_chunk: int = 512
    prefill_attention: PrefillAttention = "auto"

    def __post_init__(self):
        check_whole("slots", self.slots, least=1, most=1024)
        check_whole("context", self.context, least=2, optional=True)
        check_whole("read_every", self.read_every, least=1, optional=True)
        check_whole("prefill_chunk", self.prefill_chunk, least=1)
        if self.prefill_attention not in get_args(PrefillAttention):
            known = " or ".join(get_args(PrefillAttention))
            raise UserError(f"prefill_attention: expected {known}, got {self.prefill_attention!r}")


DEFAULT_OPTIONS = EngineOptions()


@dataclass
class _Slot:
    """The host's view of a slot: who has it, and what its cache holds, by keys."""

    job: Job | None = None
    known: list[int] = field(default_factory=list)
    released: int = 0  # when, by a count: those that were left first are taken first


class Engine:
    """Answers requests on one model. Not thread-safe.

    `submit` queues one, and each `advance` does a round of work for all and says what came out.
    A request's answer depends on its own prompt and settings alone: not on its slot, on its
    neighbours, or on when it came (up to the rounding of products of another batch size).
    """

    def __init__(self, model: MetaMorph, options: EngineOptions = DEFAULT_OPTIONS):
        language = model.config.language
        embedding = model.language.model.embed_tokens.weight
        device, dtype = embedding.device, embedding.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        self.model, self.options = model, options
        self.context = options.context or min(language.max_position_embeddings, LONGEST_CONTEXT)
        on_host = device.type == "cpu"
        self.read_every = options.read_every or (4 if on_host else 8)
        self.cache = KeyValueCache.empty(
            language, options.slots, self.context, device=device, dtype=dtype
        )
        # The spare place of the cache is a position too.
        self.rotary = RotaryTable(model.language, self.context + 1, device=device, dtype=dtype)
        slots = Slots.idle(options.slots, model.config, device, embedding.dtype)
        self.step = DecodeStep(model, slots, self.cache, self.rotary, self.read_every)
        self.programs = Programs(self.step, options.slots)
        self.history = History(self.step, ahead=0 if on_host else 1)
        self.slots = [_Slot() for _ in range(options.slots)]
        self.waiting: deque[Job] = deque()
        self.reading: list[Job] = []  # prompts under way, first come first served
        self.releases = 0

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return sum(slot.job is not None for slot in self.slots)

    def submit(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        max_images: int | None = None,
    ) -> Job:
        """Queue a request. `ValueError` for a prompt whose parts do not fit together, or which is
        with its answer longer than a slot."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        config = self.model.config
        check_prompt(config, "prompt", prompt)
        if len(prompt) + max_new_tokens > self.context:
            raise ValueError(
                f"prompt: its {len(prompt)} tokens and {max_new_tokens} new ones are more than the "
                f"{self.context} of a slot"
            )
        opens_image = prompt.token_ids[-1] == config.image_start_id
        sequence = Sequence(config, max_new_tokens, len(prompt), opens_image)
        keys = prompt.keys(config.tokens_per_image)
        job = Job(prompt, sequence, sampling, max_images, keys)
        if not job.finished:  # an image that the prompt opens may have no room
            self.waiting.append(job)
        return job

    def cancel(self, job: Job, reason: FinishReason = "cancelled") -> None:
        """The request ends here with what it has. What is under way of it comes to nothing."""
        if not job.finished:
            job.sequence.finish(reason)
            self._release(job)

    def advance(self) -> list[tuple[Job, list[Step]]]:
        """A round: newcomers get free slots, a chunk of their prompts is read, and everyone who is
        ready takes `read_every` steps, or one while prompts are under way. Returns what came out,
        by request in order; one that failed has finished with an error."""
        with torch.inference_mode():
            self._admit()
            self._read_prompts()
            is_decoding = self._decode()
        emitted: dict[Job, list[Step]] = {}
        while self.history.due(is_decoding):
            self._accept(self.history.take(), emitted)
        return list(emitted.items())

    def _admit(self) -> None:
        """Give free slots to those who wait: one that knows the beginning of the prompt, else one
        that knows nothing, else the one that was left first, of one reading the lowest."""
        while self.waiting:
            free = [index for index, slot in enumerate(self.slots) if slot.job is None]
            if not free:
                return
            job = self.waiting.popleft()
            known = {i: common_length(self.slots[i].known, job.keys) for i in free}
            best = max(free, key=known.__getitem__)
            if known[best] == 0:
                best = min(free, key=lambda i: (bool(self.slots[i].known), self.slots[i].released))
            self._take(job, best, known[best])

    def _take(self, job: Job, index: int, known: int) -> None:
        prompt = job.prompt
        kept = min(known, len(prompt) - 1)  # its last state must be computed
        for start, end in prompt.bidirectional_spans:
            if start < kept < end:
                kept = start
        job.slot, job.read, job.cached = index, kept, kept
        self.slots[index].job, self.slots[index].known = job, job.keys[:kept]
        self.cache.lengths[index] = kept
        self.reading.append(job)

    def _read_prompts(self) -> None:
        """One packed row of at most `prefill_chunk` tokens, of as many prompts as fit."""
        room, pieces, jobs = self.options.prefill_chunk, [], []
        for job in self.reading:
            if room <= 0:
                break
            assert job.slot is not None
            end = cut(job.prompt, job.read, room)
            if end > job.read:
                pieces.append(Piece(job.slot, job.prompt, job.read, end))
                jobs.append(job)
                room -= end - job.read
        if not pieces:
            return
        fp8 = self.options.prefill_attention == "fp8"
        states = prefill(self.model, self.cache, self.rotary, pieces, fp8=fp8)
        for job, piece, state in zip(jobs, pieces, states, strict=True):
            job.read = piece.end
            self.slots[piece.slot].known = job.keys[: piece.end]
            if job.read == len(job.prompt):
                self.reading.remove(job)
                self._wake(job, piece.slot, state)

    def _wake(self, job: Job, slot: int, state: Tensor) -> None:
        """Its prompt is read; `state` [H] says what comes next.

        Not before: the steps that others take meanwhile count in every row, idle or not.
        """
        prompt, config = job.prompt, self.model.config
        seen: list[int] = []
        if job.sampling.repetition_penalty != 1:
            visual = set(prompt.visual_positions)
            seen = [i for position, i in enumerate(prompt.token_ids) if position not in visual]
        self.step.slots.set_request(
            slot,
            job.sampling,
            torch.tensor(seen, dtype=torch.int64, device=state.device),
            job.sequence.budget,
            job.max_images,
        )
        left = config.tokens_per_image + 1 if job.sequence.mode is Mode.IMAGE else 0
        self.step.slots.wake(slot, state, left)

    def _decode(self) -> bool:
        """Queue steps of all who have read their prompts. False if there is nobody."""
        jobs = [slot.job for slot in self.slots]
        ready = [job if job and job.read == len(job.prompt) else None for job in jobs]
        if not any(ready):
            return False
        rows = max(index for index, job in enumerate(ready) if job) + 1
        sampling = any(job and not job.is_plain for job in jobs[:rows])
        # Who is still reading should be decoded with the others soon, not after many steps of them.
        steps = 1 if self.reading else self.read_every
        self.programs.run(rows, sampling, steps)
        self.history.record(ready, steps)
        return True

    def _accept(self, read: Emitted, emitted: dict[Job, list[Step]]) -> None:
        """What the device did becomes part of the sequences of those who had the slots then."""
        vectors = read.vectors.unbind(1)  # [steps, C] each
        for row, job in enumerate(read.owners):
            if job is None or job.finished:
                continue
            steps = job.accept(read.tokens[row], read.best[row], vectors[row])
            emitted.setdefault(job, []).extend(steps)
            if job.finished:
                self._release(job)

    def _release(self, job: Job) -> None:
        """Its slot is free, and knows what it has read and fed: all but the last token."""
        if job.slot is None:
            self.waiting.remove(job)
            return
        slot = self.slots[job.slot]
        is_reading = job in self.reading
        if is_reading:
            self.reading.remove(job)
        slot.known = job.keys[: job.read] if is_reading else job.keys[:-1]
        self.step.slots.alive[job.slot] = 0  # nor does the device know of errors
        slot.job, slot.released = None, self.releases
        self.releases += 1
        job.slot = None


def drain(engine: Engine, jobs: abc.Sequence[Job]) -> None:
    """Advance until all jobs have finished."""
    while not all(job.finished for job in jobs):
        engine.advance()
