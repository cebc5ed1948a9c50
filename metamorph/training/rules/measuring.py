"""What a run is measured on, and what it shows of itself."""

from metamorph.config import RunConfig
from metamorph.errors import UserError


def check_validation(config: RunConfig, own_source: bool = False) -> None:
    """A share is held out of data that the run opens itself."""
    if own_source and isinstance(config.data.validation, float):
        raise UserError(
            "data.validation: a share can only be held out of the source that data.path names; "
            "give a file"
        )


def check_samples(config: RunConfig, by_torchrun: bool) -> None:
    """A run that shows drawings can make them."""
    if not config.monitor.samples_every or config.trains_decoder:  # which is what draws there
        return
    if not config.monitor.decoder:
        raise UserError("monitor.decoder: monitor.samples_every needs a decoder that draws")
    if by_torchrun:  # it draws with a whole plain copy
        if config.training.lora_rank:
            raise UserError("monitor.samples_every: with LoRA it needs a run without torchrun")
        if config.parallel.cpu_offload:
            raise UserError(
                "monitor.samples_every: with parallel.cpu_offload no GPU has room for a whole copy"
            )
