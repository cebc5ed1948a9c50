"""torchtitan where there is no GPU: it knows accelerators alone, and is told that a CPU is one."""

import os
from pathlib import Path
from types import SimpleNamespace

import torch

GIBI = 2**30
# What torchtitan asks of `torch.cuda`.
CPU = SimpleNamespace(
    set_device=lambda device: None,
    current_device=lambda: 0,
    device_count=lambda: 1,
    get_device_name=lambda device=None: "cpu",
    get_device_properties=lambda device=None: SimpleNamespace(total_memory=GIBI),
    memory_stats=lambda device=None: {},
    reset_peak_memory_stats=lambda: None,
    empty_cache=lambda: None,
    synchronize=lambda device=None: None,
    is_available=lambda: True,
)


def run_torchtitan(run_file: Path, *options: str) -> list[float]:
    """What `python -m torchtitan.train` does with a run file; losses of the steps that it logs."""
    torch._utils._get_available_device_type = lambda: "cpu"
    torch._utils._get_device_module = lambda device_type: CPU
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.config import ConfigManager

    losses = []

    def log(self, step, global_avg_loss, *arguments, **keywords):
        losses.append(float(global_avg_loss))

    MetricsProcessor.log = log
    os.environ["METAMORPH_RUN"] = str(run_file)
    module = "metamorph.integrations.torchtitan"
    config = ConfigManager().parse_args(["--module", module, "--config", "run", *options])
    trainer = config.build()
    try:
        trainer.train()
    finally:
        trainer.close()
        torch.distributed.destroy_process_group()
    return losses
