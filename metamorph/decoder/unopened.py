"""A decoder that waits until something is drawn: it is checked, but diffusers is not imported."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metamorph.config.keys import DecoderPrecision
from metamorph.decoder.kinds import MODULES, OpenedDecoder, open_decoder_for, read_settings
from metamorph.decoder.lean_import import import_for_drawing
from metamorph.decoder.libraries import DEFAULT_DECODER_OPTIONS, DecoderOptions
from metamorph.decoder.one_pass_files import PIPELINE
from metamorph.errors import UserError
from metamorph.model.encoder_identity import stored_identity
from metamorph.model.unified import MetaMorph

if TYPE_CHECKING:
    from metamorph.model.vision import VisionEncoder


class UnopenedDecoder:
    """The decoder in `folder`, for the features that `model` predicts, opened by `open`.

    `device` is where it will draw. Raises `UserError` for files that are missing, damaged or of
    another kind, and for a decoder of other features. What only diffusers can tell, such as a
    tensor of another shape than the configuration needs, is for `open` to refuse.

    `options` are those of `open_decoder`. `alone`: the process does nothing else with diffusers,
    see `import_for_drawing`.
    """

    def __init__(
        self,
        folder: str | Path,
        model: MetaMorph,
        device: torch.device | str,
        *,
        alone: bool = False,
        options: DecoderOptions = DEFAULT_DECODER_OPTIONS,
    ):
        self.folder, self.device, self.model_config = Path(folder), device, model.config
        self.alone, self.options = alone, options
        self.config = read_settings(self.folder)
        options.check(self.config.kind, torch.device(device))
        self.config.check_model(self.folder, model.config)
        self._opened: OpenedDecoder | None = None
        known, encoder = self.config.encoder, model.vision_folder
        if known is not None and encoder is not None:
            if known != stored_identity(encoder, model.config.grid):
                self._opened = self._open(model.encoder)  # which compares the encoders themselves

    @property
    def feature_width(self) -> int:
        """C, the width of the features that it draws from."""
        return self.config.feature_width

    def open(self) -> OpenedDecoder:
        """The decoder itself, from the second time on the same. Raises `UserError`."""
        if self._opened is None:
            self._opened = self._open(None)
        return self._opened

    def _open(self, vision: "VisionEncoder | None") -> OpenedDecoder:
        if self.alone:
            import_for_drawing(MODULES[self.config.kind])
        return open_decoder_for(self.folder, self.model_config, vision, self.device, self.options)


Decoder = OpenedDecoder | UnopenedDecoder


def opened(decoder: Decoder) -> OpenedDecoder:
    """The decoder itself. Raises `UserError` where it was not opened and cannot be."""
    return decoder.open() if isinstance(decoder, UnopenedDecoder) else decoder


def kind_of(decoder: Decoder) -> str:
    """As `decoder.kind` of a run names it; nothing is opened."""
    if isinstance(decoder, UnopenedDecoder):
        return decoder.config.kind
    return "rae" if type(decoder).__name__ == PIPELINE else "diffusion"


def decoder_of(
    folder: Path,
    model: MetaMorph,
    device: torch.device | str,
    given: str | Path | None = None,
    options: DecoderOptions = DEFAULT_DECODER_OPTIONS,
    open_when_needed: bool = False,
) -> Decoder | None:
    """The decoder for the model in `folder`: in the folder `given`, else the model's own, if any.

    Raises `UserError` for one that is damaged or draws other features, and for `options` where
    there is none.
    """
    own = folder / "decoder"
    if given is None and not own.exists():
        if options != DEFAULT_DECODER_OPTIONS:
            raise UserError(
                f"{folder} has no decoder/, so there is none whose precision, attention or group "
                f"norm could be chosen; leave that out, or name a decoder that was trained apart"
            )
        return None
    decoder = UnopenedDecoder(given or own, model, device, alone=open_when_needed, options=options)
    return decoder if open_when_needed else decoder.open()


def preview_of(
    folder: str | Path,
    decoder: Decoder | None,
    model: MetaMorph,
    device: torch.device | str,
    precision: DecoderPrecision = "fp32",
) -> OpenedDecoder:
    """The decoder in `folder`, which shows in one pass what `decoder` is going to draw.

    Raises `UserError` for one that is damaged, draws other features or by diffusion itself, and
    where there is nothing that takes longer.
    """
    if decoder is None or kind_of(decoder) != "diffusion":
        has = "no decoder" if decoder is None else "a decoder that draws in one pass itself"
        raise UserError(
            f"{folder}: a preview is of what a diffusion decoder draws, but the model has {has}"
        )
    preview = UnopenedDecoder(folder, model, device, options=DecoderOptions(precision))
    if kind_of(preview) != "rae":
        raise UserError(
            f"{folder}: a preview needs a decoder that draws in one pass (decoder.kind: rae), this "
            f"one draws by diffusion"
        )
    return preview.open()
