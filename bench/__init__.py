"""Benchmarks: ours beside every peer, each verified before it is timed (README.md here)."""

import os
import site

if "UNPACKED_WHEELS" in os.environ:  # by gpu.sh; behind all that is installed, with .pth files read
    site.addsitedir(os.environ["UNPACKED_WHEELS"])
