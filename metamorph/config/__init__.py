"""What a run can be told (`keys`), and how files and options are read into it (`reading`)."""

from metamorph.config.data_keys import DataConfig, PartConfig, SourceConfig
from metamorph.config.keys import (
    DecoderConfig,
    ModelConfig,
    MonitorConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)

__all__ = [
    "DataConfig",
    "DecoderConfig",
    "ModelConfig",
    "MonitorConfig",
    "ParallelConfig",
    "PartConfig",
    "RunConfig",
    "SourceConfig",
    "TrainingConfig",
]
