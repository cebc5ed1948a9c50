"""The kinds of decoders that a folder may hold: what each says of itself, and how it is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from metamorph.decoder.files import DecoderSettings, check_decoder
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


def open_decoder(folder: str | Path) -> OpenedDecoder:
    """The decoder in a folder, from safetensors and of the expected classes alone.

    Raises `UserError` naming the folder if it is missing, broken or no decoder.
    """
    if read_settings(Path(folder)).kind == "rae":
        from metamorph.decoder.one_pass import OnePassDecoder

        return OnePassDecoder.from_folder(folder)
    from metamorph.decoder.pipeline import VisualDecoder

    return VisualDecoder.from_folder(folder)


def open_decoder_for(
    folder: str | Path, config: MetaMorphConfig, vision: "VisionEncoder | None"
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
    decoder = open_decoder(folder)
    decoder.set_progress_bar_config(disable=True)
    return decoder
