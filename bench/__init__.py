"""Benchmarks: ours beside every peer, each verified before it is timed (README.md here)."""
