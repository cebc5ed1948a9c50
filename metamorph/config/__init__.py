"""What a run can be told (`keys`), and how files and options are read into it (`reading`)."""

from metamorph.config.keys import (
    DataConfig,
    DecoderConfig,
    ModelConfig,
    MonitorConfig,
    ParallelConfig,
    PartConfig,
    RunConfig,
    SourceConfig,
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
