"""What the keys of the stages decoder and distill say together."""

from metamorph.config import RunConfig
from metamorph.config.reading import is_set
from metamorph.costs.sharding import mesh_shape
from metamorph.decoder.samplers import FLOW_MATCHING, NO_FLOW
from metamorph.errors import UserError
from metamorph.processes import share_of
from metamorph.training.decoders.one_pass_rules import check_one_pass
from metamorph.training.decoders.student_rules import check_student
from metamorph.training.lora import UNET_LAYERS


def check_decoder(config: RunConfig, processes: int) -> None:
    """A decoder's stage is asked for nothing of a language model, and its batch can be shared."""
    training, decoder = config.training, config.decoder
    if training.precision == "fp8":
        raise UserError(
            f"training.precision: fp8 is for a language model, not for stage {config.stage}"
        )
    if training.activation_checkpointing == "selective":
        raise UserError(
            "training.activation_checkpointing: selective is a language model's; take none or full"
        )
    if is_set(config, "training.lora_targets"):
        if strange := [name for name in training.lora_targets if name not in UNET_LAYERS]:
            raise UserError(
                f"training.lora_targets: a UNet's attention has no layer {strange[0]}; stage "
                f"{config.stage} takes some of {', '.join(UNET_LAYERS)}"
            )
    mesh_shape(processes, config.parallel.shard)
    own = share_of("decoder.batch_size", decoder.batch_size, processes)
    if own % decoder.accumulate:
        raise UserError(
            f"decoder.accumulate: {own} images of a process cannot be shared evenly by "
            f"{decoder.accumulate} parts of a step"
        )
    if decoder.kind == "rae":
        check_one_pass(decoder)
    if decoder.sampler == FLOW_MATCHING:
        raise UserError(f"decoder.sampler: {NO_FLOW}")
    check_student(config)
