"""Pictures of many answers drawn by one decoder, in batches, a denoising step at a time."""

import logging
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from metamorph.decoder.denoising import Denoising, DrawingStep, noise_generator
from metamorph.decoder.samplers import check_steps, sampler
from metamorph.decoder.unopened import Decoder, UnopenedDecoder, kind_of, opened
from metamorph.errors import UserError, in_words, shown
from metamorph.generation.events import DrawingProgress, ImageDrawn
from metamorph.generation.settings import DEFAULT_DRAWING, DrawingSettings

if TYPE_CHECKING:
    from metamorph.decoder.standalone_one_pass import OnePass

logger = logging.getLogger("metamorph.generation")


@dataclass(frozen=True)
class DrawingFailed:
    """Picture `number` of an answer cannot be drawn; `error` is a sentence."""

    number: int
    error: str


@dataclass(eq=False)
class _Picture:
    """One that waits or is under way."""

    key: Hashable
    number: int
    features: Tensor  # [tokens, C]
    seed: int
    settings: DrawingSettings
    alone: bool = False  # because a batch with it has failed
    reported: int = 0  # steps

    @property
    def group(self) -> tuple:
        """Pictures of equal ones are drawn as one batch."""
        return self.settings, self.features.shape


class UnfitDrawing(UserError):
    """Settings that a decoder cannot draw by; `field` is the one of `DrawingSettings`."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def check_drawing(decoder: Decoder | None, settings: DrawingSettings) -> None:
    """Raises `UnfitDrawing` as `check_kind`; for anything that is set where no decoder is; and for
    more steps than the sampler can take, which only an opened decoder tells: where it is not, the
    picture fails when it is begun."""
    if decoder is None:
        usual = DEFAULT_DRAWING.arguments()
        for field, value in settings.arguments().items():
            if value != usual[field]:
                raise UnfitDrawing(
                    field, "drawing: the model has no decoder, so nothing can be set for drawings"
                )
        return
    check_kind(decoder, settings)
    if kind_of(decoder) == "rae" or isinstance(decoder, UnopenedDecoder):
        return
    own, name, steps = decoder.scheduler, settings.scheduler, settings.num_inference_steps
    schedule = own if name is None else sampler(name, own.config)
    steps = decoder.config.sampling_steps if steps is None else steps
    try:
        check_steps("drawing.num_inference_steps", schedule, steps)
    except ValueError as error:
        raise UnfitDrawing("num_inference_steps", str(error)) from error


def check_kind(decoder: Decoder, settings: DrawingSettings) -> None:
    """Raises `UnfitDrawing` for settings of diffusion where the decoder draws in one pass."""
    if kind_of(decoder) != "rae":
        return
    asked = settings.arguments()
    for what, field, *without_meaning in (
        ("steps", "num_inference_steps", None, 1),
        ("sampler", "scheduler", None),
        ("guidance", "guidance_scale", None, 1),
        ("guidance rescale", "guidance_rescale", 0),
        ("guidance interval", "guidance_interval", (0, 1)),
    ):
        if asked[field] not in without_meaning:
            raise UnfitDrawing(
                field,
                f"drawing: the decoder draws in one pass and takes no {what}, got "
                f"{shown(asked[field])}; leave it out",
            )


class DrawingQueue:
    """Draws pictures in the order in which they came, up to `most` of equal settings at once.

    A picture is the same whatever is drawn beside it, up to rounding of another batch shape. Not
    thread-safe.

    `preview` draws in one pass, and the same features: whatever `preview_every` asks for, what it
    makes of them is shown at once, before any step, and in the place of all other previews.
    """

    def __init__(self, decoder: Decoder, most: int = 8, preview: Decoder | None = None):
        if most < 1:
            raise ValueError(f"most: expected at least 1, got {most}")
        self.decoder, self.most, self.preview = decoder, most, preview
        self._waiting: deque[_Picture] = deque()
        self._unseen: list[_Picture] = []  # those that `preview` is still to show
        self._batch: list[_Picture] = []  # the pictures of `_drawing`, as its rows
        self._drawing: Denoising | OnePass | None = None

    def __len__(self) -> int:
        """Pictures that wait or are under way."""
        return len(self._waiting) + len(self._batch)

    def add(
        self,
        features: Tensor,
        *,
        seed: int,
        number: int,
        settings: DrawingSettings,
        key: Hashable,
    ) -> None:
        """Queues picture `number` of the answer `key`: its features [tokens, C].

        Its noise depends on seed and number. Raises `ValueError` for features of another width,
        and what `check_kind` raises.
        """
        check_kind(self.decoder, settings)
        width = self.decoder.feature_width
        if features.ndim != 2 or features.shape[-1] != width:
            raise ValueError(f"features must be [tokens, {width}], got {tuple(features.shape)}")
        own = self.decoder.config
        if settings.num_inference_steps is None:
            settings = replace(settings, num_inference_steps=own.sampling_steps)
        if settings.guidance_scale is None:
            settings = replace(settings, guidance_scale=own.guidance_scale)
        unseen = self.preview is not None and settings.preview_every > 0
        if unseen:
            settings = replace(settings, preview_every=0)
        picture = _Picture(key, number, features, seed, settings)
        self._waiting.append(picture)
        if unseen:
            self._unseen.append(picture)

    def cancel(self, key: Hashable) -> None:
        """Forgets all pictures of an answer, also those that are under way."""
        self._waiting = deque(picture for picture in self._waiting if picture.key != key)
        self._unseen = [picture for picture in self._unseen if picture.key != key]
        rows = [row for row, picture in enumerate(self._batch) if picture.key != key]
        if self._drawing is None or len(rows) == len(self._batch):
            return
        self._batch = [self._batch[row] for row in rows]
        if rows:
            self._drawing.keep(rows)
        else:
            self._drawing = None

    def advance(self) -> list[tuple[Hashable, DrawingProgress | ImageDrawn | DrawingFailed]]:
        """Previews in one pass where some are due, else one denoising step of the batch under way,
        or the first of a new one. Returns what came of it, by answer; nothing where nothing is left
        to draw.

        Where a batch fails, its pictures are drawn again one by one: only that fails which fails
        on its own.
        """
        if not self:
            return []
        if self._unseen:
            return self._previews()
        try:
            if self._drawing is None:
                self._drawing = self._begin()
            step = next(self._drawing)
        # More steps than its schedule has; not finite; memory, and whatever a device says.
        except (ValueError, UserError, RuntimeError) as error:
            return self._failed(error)
        events = self._progress(step)
        if isinstance(step.pictures, list):
            for picture, drawn in zip(self._batch, step.pictures, strict=True):
                events.append((picture.key, ImageDrawn(picture.number, drawn)))
            self._batch, self._drawing = [], None
        return events

    def _previews(self) -> list:
        """Of the first pictures that have none."""
        shown, self._unseen = self._unseen[: self.most], self._unseen[self.most :]
        events = []
        for picture, preview in self._previewed(shown):
            steps = picture.settings.num_inference_steps
            assert steps is not None  # `add` has put in the decoder's own
            events.append((picture.key, DrawingProgress(picture.number, 0, steps, preview)))
        return events

    def _previewed(self, pictures: list[_Picture]) -> list[tuple[_Picture, Image.Image]]:
        """Each with its preview, but those of which there is none: they need none to be drawn."""
        assert self.preview is not None
        try:
            features = torch.stack([picture.features for picture in pictures])
            drawn = opened(self.preview).draw(features)
        except (UserError, RuntimeError) as error:
            if len(pictures) > 1:
                return [pair for picture in pictures for pair in self._previewed([picture])]
            logger.warning("no preview: %s", in_words(error))
            return []
        return list(zip(pictures, drawn, strict=True))

    def _begin(self) -> "Denoising | OnePass":
        """Takes the first picture that waits, and those behind it that can go with it."""
        first = self._waiting[0]
        fitting = [p for p in self._waiting if p.group == first.group and not p.alone]
        self._batch = [first] if first.alone else fitting[: self.most]
        self._waiting = deque(p for p in self._waiting if p not in self._batch)
        return opened(self.decoder).steps(
            torch.stack([picture.features for picture in self._batch]),
            generator=[noise_generator(picture.seed, picture.number) for picture in self._batch],
            preview_every=first.settings.preview_every,
            **first.settings.arguments(),
        )

    def _progress(self, step: DrawingStep) -> list:
        """Steps that a picture has not come to before: one that is drawn again repeats some."""
        previews = step.previews or [None] * len(self._batch)
        events = []
        for picture, preview in zip(self._batch, previews, strict=True):
            if step.step > picture.reported:
                picture.reported = step.step
                progress = DrawingProgress(picture.number, step.step, step.steps, preview)
                events.append((picture.key, progress))
        return events

    def _failed(self, error: Exception) -> list:
        batch, self._batch, self._drawing = self._batch, [], None
        if len(batch) > 1:
            for picture in batch:
                picture.alone = True
            self._waiting.extendleft(reversed(batch))
            return []
        [picture] = batch
        said = str(error) if isinstance(error, UserError) else in_words(error)
        problem = UserError(f"picture {picture.number + 1} of the answer cannot be drawn: {said}")
        return [(picture.key, DrawingFailed(picture.number, str(problem)))]
