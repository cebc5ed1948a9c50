"""What the data tools on the command line work on: a run file, or a mixture file alone."""

from pathlib import Path

from metamorph.config import DataConfig, RunConfig
from metamorph.config.reading import load_config
from metamorph.config.shipped import find_config
from metamorph.config.strict_yaml import read_yaml
from metamorph.data.conversation import ChatEncoder
from metamorph.errors import UserError
from metamorph.model.opening import add_image_tokens, grid_of
from metamorph.model.weights import read_tokenizer


def read_data_file(path: Path) -> RunConfig:
    """A run file, or a mixture file as the data of a run that has no model.

    They are told apart by the key `stage`. Raises `UserError` for anything else.
    """
    path = find_config(path)
    written = read_yaml(path)
    if isinstance(written, dict) and "stage" in written:
        return load_config(path)
    return RunConfig("instruct", "none", data=DataConfig(source="mixture", path=str(path)))


def open_chat_encoder(config: RunConfig) -> ChatEncoder:
    """The tokens of a run's samples, from its model's tokenizer. No weights are read.

    Raises `UserError` if the run names no model.
    """
    folder = config.model.folder or config.model.language
    if not folder:
        raise UserError("--tokenizer: a mixture file names no model, give a folder with one")
    tokenizer = read_tokenizer(Path(folder))
    add_image_tokens(tokenizer)
    return ChatEncoder(tokenizer, grid_of(config.model) ** 2)


def set_grid(config: RunConfig, grid: int | None) -> None:
    """Lets `--grid`, if given, stand for `model.grid`. `UserError` where the model has its own."""
    if grid is None:
        return
    if config.model.folder:
        raise UserError(f"--grid: the model in {config.model.folder} has a grid of its own")
    config.model.grid = grid
