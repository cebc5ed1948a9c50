"""What ptxas says of the machine code that it makes, which Triton throws away."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

LOG = "ptxas.log"  # beside the kernel in Triton's cache


def compile_and_listen(source: Any, target: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """What `triton.compile` returns, and all that ptxas printed when it made the machine code.

    Triton keeps the machine code, so this keeps what was printed beside it. A kernel that was
    compiled without it is compiled once more.
    """
    import triton
    from triton.runtime.cache import get_cache_manager

    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled, printed = _compile(source, target, options)
        cache = get_cache_manager(compiled.hash)
        kept = cache.get_file(LOG)
        if not printed and kept is None:
            triton.knobs.compilation.always_compile = True
            compiled, printed = _compile(source, target, options)
    if not printed and kept is not None:
        return compiled, Path(kept).read_text()
    cache.put(printed, LOG, binary=False)
    return compiled, printed


def _compile(source: Any, target: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """With what was printed: nothing where the kernel was in the cache."""
    import triton

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        compiled = triton.compile(source, target=target, options=options)
    return compiled, printed.getvalue()


def losses(log: str) -> tuple[str, ...]:
    """What ptxas says to have given up, in its own words: products that it makes wait for each
    other, registers that warp groups do not hand over."""
    found = re.findall(
        r"Potential Performance Loss: (.+?)(?: (?:in|for) the function .*)?$", log, re.M
    )
    return tuple(dict.fromkeys(" ".join(words.split()) for words in found))
