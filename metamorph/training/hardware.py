"""What GPUs can do at most by their data sheets, and what share of it a plan assumes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense peaks and widths of one GPU in a node of eight, decimal units, a direction each."""

    name: str
    bf16_teraflops: float
    memory_gigabytes: float
    memory_gigabytes_per_second: float
    nvlink_gigabytes_per_second: float  # to the GPUs of the same node
    network_gigabytes_per_second: float  # to other nodes: one network card for each GPU
    source: str


GPUS = {
    "h100": Gpu("H100 SXM", 989.4, 80, 3350, 450, 50, "NVIDIA H100 data sheet; DGX H100, 400 Gb/s"),
    "h200": Gpu("H200 SXM", 989.4, 141, 4800, 450, 50, "NVIDIA H200 data sheet; DGX H200, 400 Gb/s"),
    "a100": Gpu("A100 SXM", 312, 80, 2039, 300, 25, "NVIDIA A100 data sheet; DGX A100, 200 Gb/s"),
}
GPUS_IN_A_NODE = 8


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks above that a step is assumed to reach. None of them was measured here."""

    products: float = 0.60  # large matrix products
    attention: float = 0.40
    encoder: float = 0.45  # matrices of width 1152
    memory: float = 0.80
    links: float = 0.75


ASSUMED = Efficiency()
