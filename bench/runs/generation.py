"""Prompts, answers in text and images of 64 tokens, with and without a key/value cache."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.comparison import Comparison
from bench.harness.documents import IMAGE_TOKENS
from bench.harness.providers import Provider
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.trials import largest_error
from bench.runs.models import TOY, Widths, masked_attention, missing_package, speeds
from metamorph_kernels import key_intervals

PREFILL, TEXT, IMAGE = "prefill", "text decode", "image decode"
# The method is whether there is a key/value cache.
PROVIDERS = (Provider("ours cached", True), Provider("uncached", False))
MOST_UNCACHED = 8  # sequences; more take minutes
ROOM = 64  # tokens of an answer in the cache
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of all layers together
Forward = Callable[[Tensor], Tensor]  # the next input of each sequence [B, H] to its state [B, H]


@dataclass(frozen=True)
class Case(Widths):
    """Prompts that begin with an image, all of one length, and what is generated for each."""

    batch: int
    prompt: int = 512
    answer: int = ROOM  # tokens of text
    dtype: torch.dtype = torch.bfloat16
    quick: bool = False

    @property
    def name(self) -> str:
        return f"generation-{self.batch}"

    def __str__(self) -> str:
        return (
            f"{self.batch} sequences, prompts of {self.prompt} tokens, {self.layers} layers of "
            f"{self.hidden}, {str(self.dtype).removeprefix('torch.')}"
        )

    def steps(self, operation: str) -> int:
        """Tokens of one sequence: those of the prompt, or those that are generated."""
        return {PREFILL: self.prompt, TEXT: self.answer, IMAGE: IMAGE_TOKENS}[operation]

    def work(self, operation: str) -> tuple[int, str]:
        """FLOPs of a prefill; bytes of weights, keys and values that decoding reads.

        Its first state is the prefill's, so that the layers run once less than the head.
        """
        from metamorph.costs.flops import Workload, block_weights, causal_pairs, language_flops

        config = self.config()
        if operation == PREFILL:
            prompts = Workload(
                tokens=self.batch * self.prompt,
                visible_pairs=causal_pairs([self.prompt] * self.batch),
                text_targets=self.batch,
                images=self.batch,
            )
            parts = language_flops(config, prompts, trained=())
            return sum(part.forward for part in parts.values()), "TFLOP/s"
        steps = self.steps(operation)
        visible = self.batch * sum(range(self.prompt + 1, self.prompt + steps))
        keys = 2 * self.layers * visible * self.key_heads * self.head_dim
        weights = (steps - 1) * self.layers * block_weights(config.language)
        if operation == TEXT:
            weights += steps * self.hidden * self.vocabulary
        else:
            weights += (steps + steps - 1) * self.projector_weights  # vision head and projector
        return (keys + weights) * self.dtype.itemsize, "GB/s"

    def run(self, device: torch.device) -> list[Result]:
        """Verify what each provider generates beside one float32 pass over it, then time it."""
        absence = missing_package()
        trial = None if absence else _Trial(self, device)
        found = []
        for operation in (PREFILL, TEXT, IMAGE):
            comparison = Comparison(f"generation: {operation}", str(self))
            for provider in PROVIDERS:
                make = partial(_Trial.candidate, trial, operation, provider.method)
                why = absence or self.absence(operation, provider.method)
                comparison.add(provider.name, make, why)
            work = () if absence else self.work(operation)
            results = comparison.results(device, *work)
            found += results + speeds(results, self.batch * self.steps(operation), "tokens")
        return found

    def absence(self, operation: str, cached: bool) -> str | None:
        if cached or operation == PREFILL or self.batch <= MOST_UNCACHED:
            return None
        return f"takes minutes; run up to {MOST_UNCACHED} sequences"


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has toys in float32."""
    if device_type == "cpu":
        toy = TOY | {"prompt": 128, "answer": 32, "dtype": torch.float32}
        return [Case(1, **toy), Case(2, **toy)]
    return [Case(1), Case(8), Case(32)]


class _Trial:
    """The prompts, a model in the precision of the case, and the same weights in float32."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.generation.prompt import Prompt
        from metamorph.model.unified import MetaMorph

        self.case, self.device = case, device
        torch.manual_seed(0)
        with torch.device(device):
            self.model, self.exact = (MetaMorph(case.config()) for _ in range(2))
        self.model.to(case.dtype).requires_grad_(False)
        self.exact.requires_grad_(False).load_state_dict(self.model.state_dict())
        generator = torch.Generator().manual_seed(0)
        sizes = (case.batch, case.prompt)
        token_ids = torch.randint(case.vocabulary, sizes, generator=generator)
        features = torch.randn(case.batch, IMAGE_TOKENS, case.visual_width, generator=generator)
        self.token_ids = token_ids.to(device)
        self.features = F.normalize(features, dim=-1).to(device)
        self.prompts = [
            Prompt(ids, range(IMAGE_TOKENS), image[None])
            for ids, image in zip(token_ids.tolist(), self.features, strict=True)
        ]
        self.cache, self.first = self.prefill(self.prompts)

    @torch.no_grad()
    def prefill(self, prompts: list) -> tuple[Any, Tensor]:
        """A cache with the prompts in it and room for an answer, and their last states [B, H]."""
        from metamorph.generation.cache import KeyValueCache
        from metamorph.generation.prefill import Piece, prefill
        from metamorph.model.inference import RotaryTable

        language, room = self.model.config.language, self.case.prompt + ROOM
        cache = KeyValueCache.empty(
            language, len(prompts), room, device=self.device, dtype=self.case.dtype
        )
        pieces = [Piece(slot, prompt, 0, len(prompt)) for slot, prompt in enumerate(prompts)]
        self.rotary = RotaryTable(
            self.model.language, room + 1, device=self.device, dtype=self.case.dtype
        )
        return cache, prefill(self.model, cache, self.rotary, pieces)

    def candidate(self, operation: str, cached: bool) -> Candidate:
        run = partial(self._read if operation == PREFILL else self._generate, operation, cached)
        return Candidate(run, lambda _: (), *self._judged(operation, *run()))

    def _read(self, operation: str, cached: bool) -> tuple[Tensor, Tensor]:
        """The last state of each prompt [B, 1, H], and the token that it says."""
        if cached:
            _, states = self.prefill(self.prompts)
        else:
            states = self._last_states(self._prompt(self.model))
        return states[:, None], self._choose(operation, states)[:, None]

    def _generate(self, operation: str, cached: bool) -> tuple[Tensor, Tensor]:
        """States [B, steps, H], the first of which is there, and the tokens or vectors they say."""
        self.cache.lengths.fill_(self.case.prompt)
        forward = self._behind_the_cache if cached else self._whole_prefix()
        states, found, said = self.first, [], []
        while True:
            found.append(states)
            said.append(self._choose(operation, states))
            if len(said) == self.case.steps(operation):
                return torch.stack(found, 1), torch.stack(said, 1)
            states = forward(self._embedded(self.model, said[-1][:, None])[:, 0])

    @torch.no_grad()
    def _behind_the_cache(self, embeddings: Tensor) -> Tensor:
        from metamorph.generation import decode_step

        alive = torch.ones(len(embeddings), dtype=torch.int64, device=self.device)
        grown = self.cache.grow(alive)
        return decode_step.decode(self.model, self.cache, self.rotary, embeddings, *grown)

    def _whole_prefix(self) -> Forward:
        """Runs everything again for each token."""
        prefix = self._prompt(self.model)

        def forward(embeddings: Tensor) -> Tensor:
            nonlocal prefix
            prefix = torch.cat([prefix, embeddings[:, None]], dim=1)
            return self._last_states(prefix)

        return forward

    def _judged(self, operation: str, states: Tensor, said: Tensor) -> tuple[float, float]:
        """Error and bound of states, and of what they say, beside one pass over all that was said.

        A token is as good as its exact logit: another one may be as likely.
        """
        exact, plain = (self._states(model, said[:, :-1]) for model in (self.exact, self.model))
        logits = None if operation == IMAGE else self.exact.language.head(exact)

        def outcome(states: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
            return states, said if logits is None else logits.gather(-1, said[..., None])

        expected = outcome(exact, _best(self.exact, operation, exact))
        error = largest_error(outcome(states, said), expected)
        plain_error = largest_error(outcome(plain, _best(self.model, operation, plain)), expected)
        return error, min(LARGEST_ERROR[self.case.dtype], 2 * plain_error + 1e-5)

    def _choose(self, operation: str, states: Tensor) -> Tensor:
        """Unit vectors, or token ids."""
        if operation == IMAGE:
            return self.model.predict_visual(states)
        return self.model.language.head(states).argmax(dim=-1)

    def _prompt(self, model: nn.Module) -> Tensor:
        """Inputs [B, P, H]."""
        first = torch.arange(self.case.batch, device=self.device)[:, None] * self.case.prompt
        places = (first + torch.arange(IMAGE_TOKENS, device=self.device)).flatten()
        inputs = model.embed(self.token_ids.flatten(), self.features, places)
        return inputs.unflatten(0, self.token_ids.shape)

    def _embedded(self, model: nn.Module, said: Tensor) -> Tensor:
        """Inputs [B, n, H] of tokens [B, n] or vectors [B, n, C]."""
        vectors = said if said.ndim == 3 else self.features[:0]
        places = torch.arange(vectors.shape[0] * vectors.shape[1], device=self.device)
        token_ids = said.flatten() if said.ndim == 2 else torch.zeros_like(places)
        return model.embed(token_ids, vectors, places).unflatten(0, said.shape[:2])

    def _states(self, model: nn.Module, said: Tensor) -> Tensor:
        """In plain PyTorch, from the last token of the prompt on."""
        inputs = torch.cat([self._prompt(model), self._embedded(model, said)], dim=1)
        tokens = inputs.shape[1]
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=self.device).tril()
        states = self._run(model, inputs, masked_attention(mask[None, None]))
        return states[:, self.case.prompt - 1 :]

    def _last_states(self, inputs: Tensor) -> Tensor:
        from metamorph.model.unified import interval_row

        intervals = key_intervals([inputs.shape[1]] * len(inputs), device=self.device)
        return self._run(self.model, inputs, interval_row(intervals))[:, -1]

    def _run(self, model: nn.Module, inputs: Tensor, attend: Callable) -> Tensor:
        positions = torch.arange(inputs.shape[1], device=self.device).repeat(len(inputs))
        states = model.language(inputs.flatten(0, 1), positions, attend)
        return states.unflatten(0, inputs.shape[:2])


def _best(model: nn.Module, operation: str, states: Tensor) -> Tensor:
    if operation == IMAGE:
        return model.predict_visual(states)
    return model.language.head(states).argmax(-1)
