"""Answers to a list of prompts, all at once."""

from collections import abc

from metamorph.errors import UserError
from metamorph.generation.engine import Engine, EngineOptions, drain
from metamorph.generation.prompt import Prompt, check_prompt
from metamorph.generation.sequence import Generation
from metamorph.generation.settings import GREEDY, Sampling
from metamorph.model.unified import MetaMorph

MOST_AT_ONCE = 64


def generate(
    model: MetaMorph,
    prompts: abc.Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling | abc.Sequence[Sampling] = GREEDY,
    max_images: int | None = None,
) -> list[Generation]:
    """Answer every prompt with text and images; sequences may be in different modes at any time.

    A text token and a visual vector each use one of `max_new_tokens`.

    Args:
        sampling: one for all prompts, or one for each. An answer depends on its own alone: equal
            prompts get different answers from samplings of different seeds.
        max_images: how many images an answer may hold; None leaves it to the model.

    Returns:
        One Generation a prompt, in order; its features are fp32 on the CPU.

    Raises:
        ValueError: no budget, a prompt whose parts do not fit together, or another number of
            samplings than of prompts.
        UserError: the model predicts NaN or infinity.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    for number, prompt in enumerate(prompts):
        check_prompt(model.config, f"prompts[{number}]", prompt)
    given = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    if len(given) != len(prompts):
        raise ValueError(
            f"sampling: expected one for each of {len(prompts)} prompts, got {len(given)}"
        )
    if not prompts:
        return []
    slots, longest = min(len(prompts), MOST_AT_ONCE), max(map(len, prompts))
    options = EngineOptions(slots=slots, context=longest + max_new_tokens)
    engine = Engine(model, options)
    jobs = [
        engine.submit(prompt, max_new_tokens=max_new_tokens, sampling=own, max_images=max_images)
        for prompt, own in zip(prompts, given, strict=True)
    ]
    drain(engine, jobs)
    for job in jobs:
        if job.error:
            raise UserError(job.error)
    return [job.sequence.result() for job in jobs]
