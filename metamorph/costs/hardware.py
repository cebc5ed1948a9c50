"""What GPUs can do at most by their data sheets, and what share of it a plan assumes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense peaks and link widths of one GPU in a node of eight; decimal units, a direction each.

    `teraflops` is by precision, and lacks what the GPU has no units for.
    """

    name: str
    teraflops: dict[str, float]
    memory_gigabytes: float
    memory_gigabytes_per_second: float
    nvlink_gigabytes_per_second: float  # to the GPUs of the same node
    network_gigabytes_per_second: float  # to other nodes: one network card for each GPU
    source: str


HOPPER = {"fp32": 67, "bf16": 989.4, "fp8": 1978.9}
GPUS = {
    "h100": Gpu("H100 SXM", HOPPER, 80, 3350, 450, 50, "NVIDIA's data sheet, 400 Gb/s network"),
    "h200": Gpu("H200 SXM", HOPPER, 141, 4800, 450, 50, "NVIDIA's data sheet, 400 Gb/s network"),
    "a100": Gpu(
        "A100 SXM 80 GB", {"fp32": 19.5, "bf16": 312}, 80, 2039, 300, 25,
        "NVIDIA's data sheet, 200 Gb/s network",
    ),
}  # fmt: skip
GPUS_IN_A_NODE = 8


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks above that a step is assumed to reach.

    None was measured here. They were chosen so that torchtitan's published run of Llama 3.1 8B on
    eight H100s (`PUBLISHED`) comes out within a tenth.
    """

    products: float = 0.45  # large matrix products
    attention: float = 0.35
    encoder: float = 0.35  # its matrices are narrow
    memory: float = 0.70
    links: float = 0.75


ASSUMED = Efficiency()
# Llama 3.1 8B, FSDP on 8 x H100, 2 x 8192 tokens of text a GPU, bf16, compiled blocks, selective
# checkpointing: tokens/s/GPU in torchtitan's performance notes (5,762 without compilation).
PUBLISHED = 6667
