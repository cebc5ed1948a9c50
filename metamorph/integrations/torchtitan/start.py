"""What a run starts from, opened once for torchtitan's model and its data."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torchtitan.components.tokenizer import BaseTokenizer

from metamorph.config import RunConfig
from metamorph.config.reading import flat
from metamorph.devices import resolve_device
from metamorph.model.opening import open_model
from metamorph.model.unified import MetaMorph
from metamorph.model.vision import VisionEncoder
from metamorph.training.trainable import choose_trainable


class Start:
    """The model of a run file on the CPU, without its encoder; the encoder; the tokenizer."""

    def __init__(self, run: RunConfig):
        self.run = run

    @cached_property
    def device(self) -> torch.device:
        return resolve_device(self.run.device)

    @cached_property
    def _opened(self) -> tuple[MetaMorph, VisionEncoder, object]:
        with torch.device("cpu"):  # torchtitan builds models on no device
            model, tokenizer = open_model(self.run, self.device)
        choose_trainable(model, self.run.stage)
        encoder, model.vision = model.encoder, None  # frozen, and whole in every process
        return model, encoder, tokenizer

    @property
    def model(self) -> MetaMorph:
        return self._opened[0]

    @property
    def encoder(self) -> VisionEncoder:
        return self._opened[1]

    @property
    def tokenizer(self):
        return self._opened[2]

    def to_dict(self) -> dict:
        """The keys of the run, for torchtitan's log."""
        return flat(self.run)


class StartTokenizer(BaseTokenizer):
    """The tokenizer that torchtitan asks for; rows are made by that of `Start`."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, *, tokenizer_path: str):
        super().__init__()

    def encode(self, *arguments, **keywords) -> list[int]:
        raise NotImplementedError("rows come packed, from PackedRows")

    decode = get_vocab_size = encode
