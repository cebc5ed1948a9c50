"""The losses of a decoder on pictures that it is not trained on."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.data.pictures import Pictures, PreparedPicture
from metamorph.data.skips import Skips, sum_skips
from metamorph.errors import SampleError, UserError
from metamorph.model.precision import autocast
from metamorph.processes import add_up, gather, rank, totals, world_size
from metamorph.training.draws import Draws
from metamorph.training.measuring import measuring
from metamorph.training.picture_batch import PictureBatch

Numbered = tuple[int, PreparedPicture]  # with the number of its sample


class PictureValidation:
    """Measures the same pictures again and again: each once, shared by the processes, with noise
    and timestep that come from the seed and the number of its sample alone. So two looks differ by
    the weights only. The random numbers of training are left alone."""

    def __init__(self, config: RunConfig, pictures: Pictures, device: torch.device):
        self.config, self.pictures, self.device = config, pictures, device
        self.samples = min(len(pictures), config.training.validation_samples or len(pictures))
        decoder = config.decoder
        self.at_once = decoder.batch_size // world_size() // decoder.accumulate

    def measure(self, trainer: nn.Module) -> dict[str, float]:
        """Means over the pictures of all processes, which all call this. `trainer` is called as in
        training, in eval mode.

        Raises `UserError` if no picture can be used.
        """
        skips = Skips()
        with measuring(trainer):
            sums, pictures = self._sums(trainer, skips)
        skips = sum_skips(Skips.of(state) for state in gather(skips.state_dict()))
        if not pictures:
            raise UserError(
                f"data.validation: none of {skips.tried} samples can be used; first of each cause: "
                f"{skips.examples}"
            )
        means = add_up(torch.stack([*sums.values()])) / pictures
        values: dict[str, float] = {
            "validation_pictures": pictures,
            "validation_skipped": skips.counts.total(),
        }
        names = [f"validation_{name}" for name in sums]
        return values | dict(zip(names, means.tolist(), strict=True))

    def _sums(self, trainer: nn.Module, skips: Skips) -> tuple[dict[str, Tensor], int]:
        """Losses summed over the pictures of this process, and how many pictures all have."""
        own, pictures = self._own(skips), 0
        sums: dict[str, Tensor] = {}
        spare: Numbered | None = None
        while True:
            taken = [*islice(own, self.at_once)]
            counted = totals([len(taken)])[0]
            if not counted:
                return sums, pictures
            pictures += counted
            # All must compute, as weights may be shared. One that has no picture left does so for
            # nothing, on the first of all pictures.
            if spare is None:
                spare = next(one for firsts in gather(taken[:1]) for one in firsts)
            shown = taken or [spare]
            batch = PictureBatch.of([picture for _, picture in shown]).to(self.device)
            draw = Draws(self.config.seed, 0, [number for number, _ in shown])
            with autocast(self.config.training.precision, self.device):
                loss, losses = trainer(batch, draw)
            for name, value in {"loss": loss, **losses}.items():
                sums[name] = sums.get(name, 0.0) + value.float() * len(taken)

    def _own(self, skips: Skips) -> Iterator[Numbered]:
        """The pictures of this process."""
        for number in range(rank(), self.samples, world_size()):
            skips.tried += 1
            try:
                sample = self.pictures.sample(number)
                for picture in sample.pictures:
                    yield number, picture
                if sample.error is not None:
                    raise sample.error
            except SampleError as error:
                skips.add(error)
