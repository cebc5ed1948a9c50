"""Which implementations each op has, and how `impl=` chooses one.

The PyTorch paths are compositions that torch.compile traces as they are, so they are not
registered as custom operators; that is for the kernels.
"""

BACKENDS = ("triton", "cuda", "torch")
IMPLEMENTED = {
    "interval_attention": ("torch",),
    "decode_attention": ("torch",),
    "cosine_loss": ("torch",),
    "linear_cosine_loss": ("torch",),
    "linear_cross_entropy": ("torch",),
    "mlp_gelu": ("torch",),
    "pool_normalize": ("torch",),
}


def resolve(operation: str, impl: str) -> str:
    """The backend that `impl` means for `operation`: `"auto"` is `"torch"`, the only one so far.

    Raises ValueError naming what exists when `operation` has no such implementation.
    """
    if impl == "auto":
        return "torch"
    if impl not in IMPLEMENTED[operation]:
        choices = ", ".join(repr(name) for name in ("auto", *IMPLEMENTED[operation]))
        raise ValueError(f"impl: {operation} takes {choices}, got {impl!r}")
    return impl


def probe() -> dict[str, dict[str, str]]:
    """For each op and each backend, `"available"` or the reason why it is absent."""
    return {
        operation: {
            backend: "available"
            if backend in present
            else f"absent: this version has no {backend} implementation of {operation}"
            for backend in BACKENDS
        }
        for operation, present in IMPLEMENTED.items()
    }
