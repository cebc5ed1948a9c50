"""The keys of a run file as sections of torchtitan's configuration."""

import math
from typing import Any

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)
from torchtitan.config.configs import DebugConfig, ParallelismConfig, TrainingConfig

from metamorph.config import RunConfig
from metamorph.costs.sharding import mesh_shape
from metamorph.integrations.torchtitan.rules import check_run
from metamorph.processes import world_size
from metamorph.training.optimizer import rate_factors

EMBEDDINGS = r"(embed_tokens|lm_head)\.weight$"
VECTORS = r"(norm\.weight|layernorm\.weight|\.bias)$"


def sections(run: RunConfig) -> dict[str, Any]:
    """Arguments of torchtitan's `Trainer.Config`, which do the same as `metamorph train` would.

    Raises `UserError` for a key that has no counterpart.
    """
    check_run(run)
    training, processes = run.training, world_size()
    replicas, sharing = mesh_shape(processes, run.parallel.shard)
    warmup = training.warmup_steps or math.ceil(training.steps * training.warmup_ratio)
    return {
        "dump_folder": run.output,
        "optimizer": OptimizersContainer.Config(param_groups=parameter_groups(run)),
        "lr_scheduler": LRSchedulersContainer.Config(warmup_steps=warmup, decay_type="cosine"),
        "training": TrainingConfig(
            local_batch_size=1,  # a row has no batch dimension
            global_batch_size=training.rows_per_step,
            seq_len=run.data.row_length,
            max_norm=training.gradient_clip or math.inf,
            steps=training.steps,
            disable_cuda_graphs=True,  # rows have other numbers of targets and documents each
            mixed_precision_param="float32" if training.precision == "fp32" else "bfloat16",
        ),
        "parallelism": ParallelismConfig(
            data_parallel_replicate_degree=replicas,
            data_parallel_shard_degree=sharing,
            spmd_backend="partial_dtensor",
        ),
        "checkpoint": CheckpointManager.Config(
            enable=True,
            interval=training.checkpoint_every,
            keep_latest_k=training.keep_checkpoints,
            last_save_model_only=False,
        ),
        "activation_checkpoint": None,  # `training.activation_checkpointing` does it
        "metrics": MetricsProcessor.Config(
            log_freq=training.log_every,
            enable_tensorboard=run.monitor.tensorboard,
            enable_wandb=run.monitor.wandb,
        ),
        "debug": DebugConfig(seed=run.seed),
    }


def parameter_groups(run: RunConfig) -> list[ParamGroupConfig]:
    """AdamW as `make_optimizer` has it: decay for matrices outside the embeddings, and a learning
    rate for each part."""
    training = run.training
    factors = rate_factors(training)
    parts = ("language",) if run.stage == "language" else tuple(factors)
    groups = []
    for part in parts:
        prefix = rf"^losses\.model\.{part}\."
        patterns = [(prefix + ".*" + VECTORS, 0.0), (prefix, training.weight_decay)]
        if part == "language":
            patterns.insert(0, (prefix + ".*" + EMBEDDINGS, 0.0))
        for pattern, decay in patterns:
            kwargs = {
                "lr": training.learning_rate * factors[part],
                "betas": (training.beta1, training.beta2),
                "eps": 1e-8,
                "weight_decay": decay,
            }
            groups.append(
                ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs=kwargs)
            )
    return groups
