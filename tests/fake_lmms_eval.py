"""A stand-in for what of lmms-eval a model meets: its base class, its answers, its manifest."""

import abc
from dataclasses import dataclass


class lmms(abc.ABC):  # noqa: N801  as it is called there
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.task_dict = {}

    @property
    def rank(self):
        return self._rank

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    def generate_visual_cot(self, requests):
        raise NotImplementedError

    def clean(self):
        self.task_dict = {}


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()
