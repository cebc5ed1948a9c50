"""The engine of generation: images, mixed requests, second turns, and its own share of a step."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.runs.models import Widths, missing_package, speeds
from metamorph_kernels import key_intervals

QUICKSTART = {  # widths of the quickstart's model
    "layers": 4,
    "hidden": 192,
    "intermediate": 512,
    "heads": 6,
    "key_heads": 2,
    "vocabulary": 600,
    "visual_width": 96,
}
# Of unit vectors that 64 steps of rounding have moved apart; ids are the same or the run is wrong.
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.3}
NEW_TOKENS = 20  # of a second turn
ANSWERS = 5  # in which the engine's own share is measured


@dataclass(frozen=True)
class Case(Widths):
    """So many requests at once on one engine; `history` is what a second turn goes on from."""

    requests: int
    prompt: int = 1024
    history: int = 1024
    dtype: torch.dtype = torch.bfloat16
    weights: str = ""  # "int8" or "float8"
    quick: bool = False

    @property
    def name(self) -> str:
        return f"engine-{self.requests}" + (f"-{self.weights}" if self.weights else "")

    def __str__(self) -> str:
        weights = f", weights in {self.weights}" if self.weights else ""
        return (
            f"{self.requests} requests, prompts of {self.prompt} tokens, {self.layers} layers of "
            f"{self.hidden}, {str(self.dtype).removeprefix('torch.')}{weights}"
        )

    def run(self, device: torch.device) -> list[Result]:
        """Verify what each provider answers, then time it."""
        absence = missing_package()
        trial = None if absence else _Trial(self, device)
        found = []
        for operation, providers in _Trial.OPERATIONS.items():
            comparison = Comparison(f"engine: {operation}", str(self))
            for provider, make in providers.items():
                why = absence or self.absence(provider)
                comparison.add(provider, partial(make, trial), why)
            results = comparison.results(device)
            found += results + speeds(results, self.requests, "requests")
        if trial is not None:
            found.append(trial.own_share())
        return found

    def absence(self, provider: str) -> str | None:
        if provider == "uncached" and self.requests > 1:
            return "it takes one request after another: see the entry of one"
        return None


def cases(device_type: str) -> list[Case]:
    """Those of a device; a CPU has the quickstart's model in float32."""
    if device_type == "cpu":
        toy = QUICKSTART | {"prompt": 256, "dtype": torch.float32}
        return [Case(1, **toy), Case(8, **toy), Case(16, **toy)]
    return [Case(1), Case(1, weights="float8"), Case(8), Case(32)]


class _Trial:
    """A model and engines on it, and what every request must get."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.generation.engine import Engine, EngineOptions
        from metamorph.generation.prompt import Prompt
        from metamorph.model.inference import merge_projections, store_by_columns
        from metamorph.model.quantization import quantize_weights
        from metamorph.model.unified import MetaMorph

        self.case, self.device = case, device
        torch.manual_seed(0)
        with torch.device(device):
            self.plain, self.model = (MetaMorph(case.config()) for _ in range(2))
        self.plain.to(case.dtype).requires_grad_(False)
        self.model.to(case.dtype).requires_grad_(False).load_state_dict(self.plain.state_dict())
        merge_projections(self.model)
        if case.weights:
            quantize_weights(self.model, case.weights)
        store_by_columns(self.model)
        config = case.config()
        self.tokens = config.tokens_per_image
        self.answer = self.tokens + 1
        generator = torch.Generator().manual_seed(0)
        longest = max(case.prompt, case.history)
        sizes = (case.requests, longest)
        ids = torch.randint(2, case.vocabulary - 2, sizes, generator=generator).tolist()
        self.prompts = [Prompt([*own[: case.prompt - 1], config.image_start_id]) for own in ids]
        # Half of the mixed requests draw, half say something, each of another length.
        self.mixed = [
            prompt if number % 2 else Prompt(prompt.token_ids[: 1 + (17 * number) % case.prompt])
            for number, prompt in enumerate(self.prompts)
        ]
        self.histories = [Prompt(own[: case.history]) for own in ids]
        context = longest + 2 * self.answer
        self.engine, self.single = (
            Engine(self.model, EngineOptions(slots=slots, context=context))
            for slots in (case.requests, 1)
        )
        self.exact = self._uncached(self.prompts[0])

    def image(self) -> Candidate:
        """The slots know the prompts, but for the last token: the vectors are what takes time."""
        self._answer(self.engine, self.prompts)

        def run() -> list:
            return self._answer(self.engine, self.prompts, known=self.case.prompt - 1)

        return self._candidate(run, self._image_error)

    def uncached(self) -> Candidate:
        return self._candidate(partial(self._uncached, self.prompts[0]), self._image_error)

    def at_once(self) -> Candidate:
        return self._candidate(partial(self._answer, self.engine, self.mixed), self._mixed_error)

    def one_at_a_time(self) -> Candidate:
        def run() -> list:
            return [self._answer(self.single, [prompt])[0] for prompt in self.mixed]

        return self._candidate(run, self._mixed_error)

    def second_turn(self) -> Candidate:
        """The first token of a turn behind a history that its slot knows."""
        self._first_token(known=False)
        return self._candidate(partial(self._first_token, known=True), self._first_error)

    def whole_conversation(self) -> Candidate:
        return self._candidate(partial(self._first_token, known=False), self._first_error)

    OPERATIONS = {
        "an image, its prompt read": {"ours": image, "uncached": uncached},
        "mixed requests": {"ours": at_once, "one at a time": one_at_a_time},
        "first token of a second turn": {"ours": second_turn, "whole prefill": whole_conversation},
    }

    def _candidate(self, run: Callable[[], Any], error: Callable[[Any], float]) -> Candidate:
        bound = LARGEST_ERROR[self.case.dtype] * (3 if self.case.weights else 1)
        return Candidate(run, lambda _: (), error(run()), bound, by_the_wall=True)

    def _answer(self, engine, prompts: list, known: int = 0) -> list:
        """Generations of `prompts`, on an engine whose slots know so many tokens of their last."""
        from metamorph.generation.engine import drain

        for slot in engine.slots:
            slot.known = slot.known[:known]
        jobs = [engine.submit(prompt, max_new_tokens=self.answer) for prompt in prompts]
        drain(engine, jobs)
        return [job.sequence.result() for job in jobs]

    def _first_token(self, known: bool) -> list[int]:
        from metamorph.generation.engine import drain

        for slot in self.engine.slots:
            slot.known = slot.known[: self.case.history - NEW_TOKENS if known else 0]
        jobs = [self.engine.submit(prompt, max_new_tokens=1) for prompt in self.histories]
        drain(self.engine, jobs)
        return [job.sequence.result().token_ids[0] for job in jobs]

    @torch.no_grad()
    def _uncached(self, prompt) -> Tensor:
        """The image [tokens, C] of a prompt that opens one, by the plain model, everything run
        again for each vector."""
        from metamorph.model.unified import interval_row

        token_ids = torch.tensor(prompt.token_ids, device=self.device)
        inputs = self.plain.language.model.embed_tokens(token_ids)
        vectors = []
        while len(vectors) < self.tokens:
            intervals = key_intervals([len(inputs)], device=self.device)
            positions = torch.arange(len(inputs), device=self.device)
            state = self.plain.language(inputs, positions, interval_row(intervals))[-1:]
            vectors.append(self.plain.predict_visual(state))
            inputs = torch.cat([inputs, self.plain.projector(vectors[-1].to(inputs.dtype))])
        return torch.cat(vectors)

    def _image_error(self, answers: list | Tensor) -> float:
        found = answers if isinstance(answers, Tensor) else answers[0].images[0]
        return (found.to(self.device) - self.exact).abs().max().item()

    @cached_property
    def alone(self) -> list:
        """What each of the mixed requests gets where there is no other."""
        return [self._answer(self.single, [prompt])[0] for prompt in self.mixed]

    def _mixed_error(self, answers: list) -> float:
        """Of the first vectors of each image beside those of the request alone; infinite for
        another number of steps."""
        errors = [0.0]
        for one, other in zip(answers, self.alone, strict=True):
            if (one.steps, len(one.images)) != (other.steps, len(other.images)):
                return float("inf")
            pairs = zip(one.images, other.images, strict=True)
            errors += [(a[0] - b[0]).abs().max().item() for a, b in pairs]
        return max(errors)

    @torch.no_grad()
    def _first_error(self, token_ids: list[int]) -> float:
        """How much less likely the tokens are than the best, by the plain model."""
        from metamorph.model.unified import interval_row

        errors = []
        for prompt, token_id in zip(self.histories, token_ids, strict=True):
            ids = torch.tensor(prompt.token_ids, device=self.device)
            intervals = key_intervals([len(ids)], device=self.device)
            states = self.plain.language(
                self.plain.language.model.embed_tokens(ids),
                torch.arange(len(ids), device=self.device),
                interval_row(intervals),
            )
            logits = self.plain.language.head(states[-1:])[0]
            errors.append((logits.max() - logits[token_id]).item())
        return max(errors)

    def own_share(self) -> Result:
        """How much of a decode step is not the model's token table, rotary table, layers, heads or
        projector: measured within the same rounds, the median of some answers.

        By the wall on a CPU; on a GPU a step is one graph, in which nobody can be told apart.
        """
        operation, case = "engine: own share of a step", str(self.case)
        if self.device.type != "cpu":
            return Result(operation, case, "ours", "absent", "a graph on a GPU has no parts")
        share = median(self._share_of_an_answer() for _ in range(ANSWERS))
        return Result(operation, case, "ours", "ok", f"{share:.1%} is not the model's forward")

    def _share_of_an_answer(self) -> float:
        for prompt in self.prompts:
            self.engine.submit(prompt, max_new_tokens=self.answer)
        while self.engine.reading or self.engine.waiting:
            self.engine.advance()
        model = _Watched(self.engine)
        begin = time.perf_counter()
        while self.engine.active:
            self.engine.advance()
        whole = time.perf_counter() - begin
        model.restore()
        return 1 - model.seconds / whole


class _Watched:
    """Counts the seconds of the forwards of an engine's model until `restore`."""

    def __init__(self, engine):
        model = engine.model
        self.seconds = 0.0
        self.parts = [
            (model.language, "run"), (model.language, "head"), (model, "predict_visual"),
            (model.projector, "forward"), (model.language.model.embed_tokens, "forward"),
            (engine.rotary, "at"),
        ]  # fmt: skip
        for owner, name in self.parts:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable) -> Callable:
        def call(*arguments):
            begin = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - begin
            return result

        return call

    def restore(self) -> None:
        for owner, name in self.parts:
            delattr(owner, name)
