"""What a task of lmms-eval asks of an answer, its `generation_kwargs`, as our settings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metamorph.errors import UserError, shown
from metamorph.generation.settings import AnswerSettings, Sampling

OF_DRAWS = ("temperature", "top_p", "top_k")
KNOWN = (
    *("max_new_tokens", "until", "do_sample", "num_beams"),
    *("repetition_penalty", "seed", *OF_DRAWS),
)
# Says how LLaVA fills the square that its encoder reads. Ours was trained on one way to do it.
OF_OTHER_MODELS = {"image_aspect_ratio"}


def answer_settings(
    asked: Mapping[str, Any], *, max_new_tokens: int, seed: int, repeat: int = 0
) -> AnswerSettings:
    """Settings of an answer in text; `max_new_tokens` and `seed` hold where the task names none.
    Each `repeat` of a request has a seed of its own.

    Sampled is what asks for it by `do_sample`, and without that word by a temperature above 0.
    Raises `UserError` for a key or a value that cannot be followed.
    """
    asked = {key: value for key, value in asked.items() if value is not None}
    unknown = sorted(set(asked) - {*KNOWN, *OF_OTHER_MODELS})
    if unknown:
        known = ", ".join(KNOWN)
        raise UserError(f"generation_kwargs: unknown {shown(unknown[0])}, expected some of {known}")
    if asked.get("num_beams", 1) != 1:
        beams = shown(asked["num_beams"])
        raise UserError(f"generation_kwargs: num_beams: expected 1, for no beams, got {beams}")
    until = asked.get("until", ())
    if not isinstance(until, str | list | tuple):
        raise UserError(f"generation_kwargs: until: expected text or texts, got {shown(until)}")
    chosen = {key: asked[key] for key in ("repetition_penalty", "seed") if key in asked}
    is_sampled = asked.get("do_sample", asked.get("temperature", 0) != 0)
    if is_sampled not in (True, False):
        found = shown(is_sampled)
        raise UserError(f"generation_kwargs: do_sample: expected true or false, got {found}")
    if is_sampled:
        chosen |= {key: asked[key] for key in OF_DRAWS if key in asked}
        chosen.setdefault("temperature", 1.0)
    # Of greedy answers tasks name any of these, top_p 0 too, which would leave no token to draw.
    sampling = Sampling(**{"seed": seed} | chosen)
    return AnswerSettings(
        asked.get("max_new_tokens", max_new_tokens),
        replace(sampling, seed=sampling.seed + repeat),
        max_images=0,
        stop=(until,) if isinstance(until, str) else tuple(until),
        drawing=None,
    )
