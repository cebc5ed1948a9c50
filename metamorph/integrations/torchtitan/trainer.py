"""torchtitan's trainer, which saves a folder that all of our programs open."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as distributed
from torchtitan.tools.utils import device_type
from torchtitan.trainer import Trainer

from metamorph.training.parallel import save_model


class MetaMorphTrainer(Trainer):
    """Saves `model/` beside torchtitan's checkpoints when the last step is done."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        pass

    def init_distributed(self) -> ParallelDims:
        """As torchtitan does it, with gloo too: targets are counted on the host."""
        if not hasattr(dist, "set_timeout"):  # as torchtitan calls what torch 2.13 has as this
            # pyrefly: ignore[missing-attribute]
            dist.set_timeout = _set_pg_timeout
        world_size = distributed.init_distributed(
            self.config.comm,
            enable_cpu_backend=device_type != "cpu",
            base_folder=self.config.dump_folder,
        )
        return ParallelDims.from_config(self.config.parallelism, world_size)

    def train(self) -> None:
        super().train()
        [part] = self.model_parts
        model, start = part.model, part.start
        model.vision = start.encoder
        save_model(model, Path(self.config.dump_folder) / "model", start.tokenizer)

    def close(self) -> None:
        self.dataloader.lanes.close()
        super().close()
