"""The kinds of decoders that a folder may hold: what each says of itself, and how it is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch
from torch import nn

from metamorph.decoder.files import DecoderSettings, check_decoder
from metamorph.decoder.libraries import DEFAULT_DECODER_OPTIONS, DecoderOptions
from metamorph.decoder.one_pass_files import PIPELINE, check_one_pass_decoder
from metamorph.errors import UserError
from metamorph.folders import check_folder
from metamorph.model.encoder_identity import identity
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.weights import read_json

if TYPE_CHECKING:
    from metamorph.decoder.one_pass import OnePassDecoder
    from metamorph.decoder.pipeline import VisualDecoder
    from metamorph.model.vision import VisionEncoder

MODULES = {  # by kind; each takes seconds to import
    "diffusion": "metamorph.decoder.pipeline",
    "rae": "metamorph.decoder.one_pass",
}
OpenedDecoder = Union["VisualDecoder", "OnePassDecoder"]


def read_settings(folder: Path) -> DecoderSettings:
    """What the decoder in a folder says of itself, whichever kind it is.

    Raises `UserError` for files that are missing, damaged, of another pipeline or do not fit
    together, as far as that shows without opening its parts.
    """
    path = check_folder(folder) / "model_index.json"
    if path.is_file() and read_json(path).get("_class_name") == PIPELINE:
        return check_one_pass_decoder(folder)
    return check_decoder(folder)


def open_decoder(
    folder: str | Path,
    device: torch.device | str = "cpu",
    options: DecoderOptions = DEFAULT_DECODER_OPTIONS,
) -> OpenedDecoder:
    """The decoder in a folder, from safetensors and of the expected classes alone, on a device.

    Raises `UserError` naming the folder if it is missing, broken or no decoder, and for options
    that a decoder of its kind or this device has not.
    """
    kind = read_settings(Path(folder)).kind
    options.check(kind, torch.device(device))
    if kind == "rae":
        from metamorph.decoder.one_pass import OnePassDecoder

        one_pass = OnePassDecoder.from_folder(folder).to(device)
        _cast(one_pass, options)
        return one_pass
    from metamorph.decoder.pipeline import VisualDecoder

    decoder = VisualDecoder.from_folder(folder).to(device)
    _cast(decoder, options)
    decoder.use_libraries(attention=options.attention, group_norm=options.group_norm)
    return decoder


def _cast(decoder: OpenedDecoder, options: DecoderOptions) -> None:
    for part in decoder.components.values():
        if isinstance(part, nn.Module) and options.precision == "bf16":
            part.bfloat16()  # of `to` with a dtype diffusers warns, whatever the part


def open_decoder_for(
    folder: str | Path,
    config: MetaMorphConfig,
    vision: "VisionEncoder | None",
    device: torch.device | str = "cpu",
    options: DecoderOptions = DEFAULT_DECODER_OPTIONS,
) -> OpenedDecoder:
    """`open_decoder`, quiet, of a decoder for the features that a model predicts.

    Raises `UserError` for one that was trained on others: of another width, another number of
    them a picture, or of another encoder than `vision`, where both are known.
    """
    settings = read_settings(Path(folder))
    settings.check_model(Path(folder), config)
    known = settings.encoder
    if known is not None and vision is not None and known != identity(vision):
        raise UserError(
            f"{folder}: it draws from features of another encoder than that of the model: "
            f"other weights, or another normalisation or size of pictures"
        )
    decoder = open_decoder(folder, device, options)
    decoder.set_progress_bar_config(disable=True)
    return decoder
