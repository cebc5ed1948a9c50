"""Experiments with the toy: grids of small trainings over seeds, their tables and verdicts."""
