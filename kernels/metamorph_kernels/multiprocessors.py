"""How many streaming multiprocessors (SMs) share the programs of a kernel."""

import torch

INTERPRETED = 2  # more than one, so that programs of the interpreter share their work as well


def multiprocessors(device: torch.device) -> int:
    """The SMs of a GPU; on a CPU, in Triton's interpreter, a few."""
    if device.type != "cuda":
        return INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count
