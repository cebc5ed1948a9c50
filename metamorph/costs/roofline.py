"""How long a step should take: a prediction from data sheets and assumptions, no measurement.

A collective among several nodes takes as many rings as a node has network cards: each card carries
one ring. Replicas lie in different nodes, so that all of their exchange goes through one card.
"""

from dataclasses import dataclass

from metamorph.costs.flops import ATTENTION, ATTENTION_REPEATED, PROJECTIONS, Flops
from metamorph.costs.hardware import GPUS_IN_A_NODE, Efficiency, Gpu
from metamorph.costs.sharding import Traffic

# Each kept activation is written and read, and so is its gradient; half as much again is moved for
# what nobody keeps.
ACTIVATION_PASSES = 6
GIGA, TERA = 1e9, 1e12
RULES = """\
  compute        operations / (peak x share), and what norms and activations move / memory bandwidth
  communication  bytes that one GPU sends / (link bandwidth x share); latency is not counted
  optimizer      bytes that AdamW reads and writes / memory bandwidth
  step           the longer of compute and communication, which overlap in full, plus optimizer
  data           always there in time"""


@dataclass(frozen=True)
class Prediction:
    """Seconds of an optimizer step, by what they go into."""

    products: float
    attention: float
    encoder: float
    activations: float
    sharing: float  # gathers and reductions among those that share a copy
    replicas: float  # the sum of gradients over copies
    optimizer: float

    @property
    def compute(self) -> float:
        return self.products + self.attention + self.encoder + self.activations

    @property
    def communication(self) -> float:
        return self.sharing + self.replicas

    @property
    def step(self) -> float:
        return max(self.compute, self.communication) + self.optimizer


def compute_seconds(
    parts: dict[str, Flops],
    repeated: float,
    encoder: Flops,
    precision: str,
    gpu: Gpu,
    assumed: Efficiency,
) -> dict[str, float]:
    """Seconds of matrix products, attention and encoder.

    `parts`, `repeated` and `encoder` are from `language_flops`, `repeated_flops` and
    `encoder_flops` over one GPU's rows. fp8 speeds up the language projections alone.
    """
    attention = parts[ATTENTION].total + ATTENTION_REPEATED * parts[ATTENTION].forward
    repeated_projections = repeated - ATTENTION_REPEATED * parts[ATTENTION].forward
    projections = parts[PROJECTIONS].total + repeated_projections
    others = sum(p.total for name, p in parts.items() if name not in (PROJECTIONS, ATTENTION))
    plain = TERA * gpu.teraflops["fp32" if precision == "fp32" else "bf16"]
    return {
        "products": (projections / (TERA * gpu.teraflops[precision]) + others / plain)
        / assumed.products,
        "attention": attention / (plain * assumed.attention),
        "encoder": encoder.total / (plain * assumed.encoder),
    }


def communication_seconds(
    sent: Traffic, replicas: int, shard: int, gpu: Gpu, assumed: Efficiency
) -> dict[str, float]:
    """Seconds that one GPU needs to send its share to its own group, and to the other replicas."""
    nvlink = gpu.nvlink_gigabytes_per_second * GIGA * assumed.links
    network = gpu.network_gigabytes_per_second * GIGA * assumed.links
    within = sent.all_gather + sent.reduce_scatter
    sharing = within / nvlink
    if shard > GPUS_IN_A_NODE:
        sharing = max(sharing, within / GPUS_IN_A_NODE / network)
    one_node = replicas * shard <= GPUS_IN_A_NODE
    return {"sharing": sharing, "replicas": sent.all_reduce / (nvlink if one_node else network)}


def memory_seconds(moved: float, gpu: Gpu, assumed: Efficiency) -> float:
    """Seconds to read and write so many bytes."""
    return moved / (gpu.memory_gigabytes_per_second * GIGA * assumed.memory)
