"""What a language model knows of the puzzles' subjects, asked in text alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metamorph.errors import UserError
from metamorph.evaluation.puzzles import VALUES, Puzzle
from metamorph.model.language import Llama
from metamorph.model.unified import interval_row
from metamorph_kernels import key_intervals


@dataclass(frozen=True)
class Knowledge:
    """Of one puzzle: the log-probability of each possible value behind its frames, the mean over
    the frames; and `usual`, the mean of that over all puzzles of its kind."""

    puzzle: Puzzle
    log_probabilities: dict[str, float]
    usual: dict[str, float]

    @property
    def said(self) -> str:
        """The likeliest value."""
        return max(self.log_probabilities, key=self.log_probabilities.__getitem__)

    @property
    def known(self) -> bool:
        """Is the right value said? A model that always says the same is right now and then."""
        return self.said == self.puzzle.right

    @property
    def associated(self) -> str:
        """The value that the subject makes likelier than usual by most."""
        return max(VALUES[self.puzzle.attribute], key=self._rise)

    @property
    def is_associated(self) -> bool:
        """Is that the right value? Saying the same of everything gains nothing here."""
        return self.associated == self.puzzle.right

    def _rise(self, value: str) -> float:
        return self.log_probabilities[value] - self.usual[value]


def knowledge_of(language: Llama, tokenizer, puzzles: Sequence[Puzzle]) -> list[Knowledge]:
    """What a model expects behind the frames of each puzzle. `tokenizer`: its tokenizer, as
    transformers or `read_saved_tokenizer` opens it. Puzzles of a kind should come together: they
    say what is usual.

    Values are told apart by their first token. Raises `UserError` if two share it.
    """
    first = {
        attribute: first_tokens(tokenizer, attribute)
        for attribute in dict.fromkeys(puzzle.attribute for puzzle in puzzles)
    }
    found = [
        _log_probabilities(language, tokenizer, puzzle, first[puzzle.attribute])
        for puzzle in puzzles
    ]
    kinds: dict[str, list[dict[str, float]]] = {}
    for puzzle, values in zip(puzzles, found, strict=True):
        kinds.setdefault(puzzle.knowledge, []).append(values)
    usual = {
        kind: {value: sum(one[value] for one in all_of) / len(all_of) for value in all_of[0]}
        for kind, all_of in kinds.items()
    }
    return [
        Knowledge(puzzle, values, usual[puzzle.knowledge])
        for puzzle, values in zip(puzzles, found, strict=True)
    ]


def first_tokens(tokenizer, attribute: str) -> dict[str, int]:
    """With which token each value of an attribute begins. Raises `UserError` if two share it, as
    where a tokenizer spells the words: then its model's next token does not say which it means."""
    values = VALUES[attribute]
    first = {value: _ids(tokenizer, f" {value}", False)[0] for value in values}
    if len(set(first.values())) < len(values):
        raise UserError(f"tokenizer: some of {', '.join(values)} begin with the same token")
    return first


def _ids(tokenizer, text: str, special: bool) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=special, split_special_tokens=False)


@torch.no_grad()
def _log_probabilities(
    language: Llama, tokenizer, puzzle: Puzzle, first: dict[str, int]
) -> dict[str, float]:
    frames = [_ids(tokenizer, frame, True) for frame in puzzle.frames]
    lengths = [len(frame) for frame in frames]
    device = language.output_weight.device
    token_ids = torch.tensor([token for frame in frames for token in frame], device=device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    states = language(
        language.model.embed_tokens(token_ids),
        positions,
        interval_row(key_intervals(lengths, device=device)),
    )
    ends = torch.tensor(lengths).cumsum(0).to(device) - 1
    logits: Tensor = language.head(states[ends])  # [frames, V]
    means = logits.float().log_softmax(-1).mean(0)
    return {value: means[token].item() for value, token in first.items()}
