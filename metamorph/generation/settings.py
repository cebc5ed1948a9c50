"""What a request asks for: how text is chosen, how much of an answer, how pictures are drawn."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from metamorph.config.keys import MAX_SEED
from metamorph.decoder.samplers import SAMPLERS
from metamorph.errors import UserError, shown

LARGEST_FLOAT = 3e38  # about what 32 bits hold


def check_number(name: str, value: float, *, least: float, most: float = math.inf) -> None:
    """Raises `UserError` unless it is a finite number from `least` to `most`."""
    kind_fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    # A whole number, as JSON has them, may be larger than any float of a device.
    if not (kind_fits and least <= value <= min(most, LARGEST_FLOAT)):
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise UserError(f"{name}: expected a number, {limits}, got {shown(value)}")


def check_whole(
    name: str, value: int | None, *, least: int, most: int | None = None, optional: bool = False
) -> None:
    """As `check_number` for a whole number, which may be None where it is optional."""
    if value is None and optional:
        return
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not (fits and least <= value and (most is None or value <= most)):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name}: expected a whole number, {limits}, got {shown(value)}")


@dataclass(frozen=True)
class Sampling:
    """How text tokens are chosen; the default takes the likeliest.

    Temperature 0 takes the best token. Above 0 logits are divided by it, cut to the `top_k` best,
    to the smallest set whose probability reaches `top_p`, and to those at least `min_p` times as
    probable as the best; draws depend on `seed` and on how many tokens came before, on nothing
    else. `repetition_penalty` divides positive and multiplies negative logits of all tokens that
    stand in the prompt or the answer (Keskar et al., arXiv 1909.05858), for greedy choice too.
    Images are never sampled: they have one prediction.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_number("temperature", self.temperature, least=0)
        check_whole("top_k", self.top_k, least=1, optional=True)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, least=0, most=1)
        if self.top_p == 0:
            raise UserError("top_p: expected more than 0 and at most 1, got 0")
        # Beyond these no finite logit is sure to stay finite, and no text to make sense.
        check_number("repetition_penalty", self.repetition_penalty, least=0.01, most=100)
        check_whole("seed", self.seed, least=0, most=MAX_SEED)


GREEDY = Sampling()


@dataclass(frozen=True)
class DrawingSettings:
    """How the decoder draws, as `VisualDecoder.steps` takes it; None is the decoder's own. Every
    `preview_every` denoising steps a picture is shown as it would look by then; 0 shows none."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    scheduler: str | None = None
    preview_every: int = 0

    def __post_init__(self):
        steps = self.num_inference_steps
        check_whole("drawing.num_inference_steps", steps, least=1, most=1000, optional=True)
        if self.guidance_scale is not None:
            check_number("drawing.guidance_scale", self.guidance_scale, least=0)
        check_number("drawing.guidance_rescale", self.guidance_rescale, least=0, most=1)
        name, interval = "drawing.guidance_interval", self.guidance_interval
        if not isinstance(interval, tuple) or len(interval) != 2:
            raise UserError(f"{name}: expected two numbers, from 0 to 1, got {shown(interval)}")
        for share in interval:
            check_number(name, share, least=0, most=1)
        if interval[0] > interval[1]:
            raise UserError(f"{name}: expected the smaller number first, got {shown(interval)}")
        if self.scheduler not in (None, *SAMPLERS):
            raise UserError(
                f"drawing.scheduler: expected one of {', '.join(SAMPLERS)}, "
                f"got {shown(self.scheduler)}"
            )
        check_whole("drawing.preview_every", self.preview_every, least=0)

    def arguments(self) -> dict[str, Any]:
        """All but the previews, as arguments of `VisualDecoder.draw` and `steps`."""
        return {name: value for name, value in asdict(self).items() if name != "preview_every"}


DEFAULT_DRAWING = DrawingSettings()


@dataclass(frozen=True)
class AnswerSettings:
    """One answer. Text and visual tokens each count in `max_new_tokens`.

    After `max_images` pictures no more is begun (None: as many as there is room for). The answer
    ends before the first of the `stop` strings. The noise of its pictures depends on the seed of
    `sampling` and their number. `drawing` None leaves pictures as features.
    """

    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    max_images: int | None = None
    stop: tuple[str, ...] = ()
    drawing: DrawingSettings | None = field(default_factory=DrawingSettings)

    def __post_init__(self):
        check_whole("max_new_tokens", self.max_new_tokens, least=1)
        check_whole("max_images", self.max_images, least=0, optional=True)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop: expected strings that are not empty, got {shown(self.stop)}")


DEFAULT_ANSWER = AnswerSettings()
