"""Plans of runs, made without training: a dry run here, or on many GPUs."""
