"""How long the samples of a run are, from some of them, and how many of those can be used."""

from dataclasses import dataclass
from pathlib import Path

from metamorph.config import RunConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.opening import open_source
from metamorph.data.validate import validate_part
from metamorph.errors import UserError
from metamorph.model.opening import grid_of
from metamorph.model.tokenizer import open_tokenizer

LOOKED_AT = 64


@dataclass(frozen=True)
class SeenSamples:
    """`in_epoch`: samples of the data. Tokens of the longest and the mean one; 0 where the
    language model's tokenizer is not here."""

    in_epoch: int
    looked_at: int
    longest: int = 0
    mean: float = 0.0


def see_samples(config: RunConfig) -> SeenSamples:
    """Looks at some samples of a run, their pictures too.

    Raises `UserError` if more of them are bad than `data.skip_limit` allows.
    """
    words = not config.trains_decoder
    encoder = _encoder(config) if words else None
    source = open_source(config.data, config.seed, words, portion="training")
    if words and encoder is None:
        return SeenSamples(len(source), 0)
    report = validate_part(
        "data", source, encoder, config.data.row_length, samples=LOOKED_AT, too_long="skip"
    )
    skips = report.skips
    if skips.counts.total() > config.data.skip_limit * skips.tried:
        [(cause, (_, example)), *_] = skips.by_cause().items()
        raise UserError(
            f"data.path: {skips.counts.total()} of {skips.tried} samples cannot be used, most by "
            f"{cause}, first {example}"
        )
    lengths = report.lengths or [0]
    return SeenSamples(len(source), skips.tried, max(lengths), sum(lengths) / len(lengths))


def _encoder(config: RunConfig) -> ChatEncoder | None:
    folder = config.model.folder or config.model.language
    if not (Path(folder) / "tokenizer.json").is_file():
        return None
    tokenizer, _ = open_tokenizer(config.model)
    return ChatEncoder(tokenizer, grid_of(config.model) ** 2)
