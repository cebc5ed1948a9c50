"""Kernels of whole rows: pooling with normalisation, and rounding to float8."""
