"""Every Triton kernel compiled without a GPU, and what its machine code says.

`python -m metamorph_kernels.aot` prints a row for each kernel in each shipped configuration, and
fails where one must not ship. Nothing here imports Triton before something is compiled.

- `compilations`: every shipped configuration; `compile_ahead`: one of them as `Resources`
- `faults`: what of these must not ship
- `Exponentials`: which exp2 are issued under a product in flight
- `Stretch`: the innermost loop in numbers, for a model of its speed
"""

from metamorph_kernels.aot.building import CompileError, Resources, compilations, compile_ahead
from metamorph_kernels.aot.exponentials import Exponentials
from metamorph_kernels.aot.judging import faults, fitting
from metamorph_kernels.aot.machine_code import Accesses, Stretch

__all__ = [
    "Accesses",
    "CompileError",
    "Exponentials",
    "Resources",
    "Stretch",
    "compilations",
    "compile_ahead",
    "faults",
    "fitting",
]
