"""What training a decoder or its student would need, on any machine, without weights or data.

metamorph train configs/metamorph_8b/decoder.yaml --dry-run --world-size 16
"""

from metamorph.config import RunConfig
from metamorph.costs.hardware import ASSUMED, Gpu
from metamorph.costs.memory import decoder_bytes
from metamorph.costs.roofline import TERA
from metamorph.costs.sharding import mesh_shape
from metamorph.costs.step import describe_decoder_memory
from metamorph.model.describe import describe_parameters
from metamorph.planning.decoder_outlines import outline_decoder


def plan_decoder(config: RunConfig, world_size: int, gpu: Gpu) -> str:
    """The plan of a decoder run on `world_size` GPUs, in text. `check_plan` comes before."""
    training, pictures = config.training, config.decoder.batch_size // world_size
    model = outline_decoder(config)
    parts = model.flops
    replicas, sharing = mesh_shape(world_size, config.parallel.shard)
    parameters = describe_parameters(model, config.stage)
    memory = decoder_bytes(model.shared(config, world_size), config)
    head = (
        f"plan of stage {config.stage} on {world_size} x {gpu.name}: {replicas} copies of the "
        f"weights, each shared by {sharing}"
    )
    at_once = pictures // config.decoder.accumulate
    total = sum(part.total for part in parts.values())
    if training.activation_checkpointing == "full":  # its forward is computed again
        total += parts[model.repeated].forward
    rate = TERA * gpu.teraflops[config.training.precision] * ASSUMED.encoder / total
    flops = [f"teraflops of a picture{'':<2}{'forward':>12}{'backward':>12}"]
    flops += [
        f"  {name:<22}{part.forward / TERA:>12.4g}{part.backward / TERA:>12.4g}"
        for name, part in parts.items()
    ]
    return "\n\n".join([
        "\n".join([
            head,
            f"  {pictures} pictures on each, {at_once} at a time",
            "  a prediction: nothing here was measured, nothing is trained or written",
            *(f"  {source}" for source in model.sources),
        ]),
        parameters,
        "\n".join(flops),
        describe_decoder_memory(memory),
        f"predicted at most {rate:.1f} pictures/s/GPU, {pictures / rate:.2f} s a step: "
        f"{ASSUMED.encoder:.0%} of {gpu.teraflops[config.training.precision]:g} TFLOP/s "
        f"(a guess; {gpu.source}), communication hidden",
    ])  # fmt: skip
