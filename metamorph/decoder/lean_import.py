"""Importing diffusers for drawing alone.

Where peft, torchao and transformers are installed, diffusers imports them too, which takes longer
than importing what drawing needs.
"""

import sys
from importlib import import_module

# Packages that diffusers looks for when it is imported, and that the decoder has no use of.
UNUSED = (
    "accelerate", "bitsandbytes", "flash_attn", "gguf", "optimum", "peft", "torchao",
    "transformers", "xformers",
)  # fmt: skip


def import_for_drawing(module: str) -> None:
    """Imports a module of a decoder, and diffusers as if `UNUSED` were not installed.

    For a process that draws and does nothing else with diffusers, which has no pipelines with text
    encoders and no adapters in it. Packages that were imported before are found as ever, and if
    diffusers was, it stays as it is.
    """
    if "diffusers" in sys.modules:
        return
    hidden = [name for name in UNUSED if name not in sys.modules]
    for name in hidden:
        # How Python writes down that there is no such module.
        sys.modules[name] = None  # pyrefly: ignore[unsupported-operation]
    try:
        import_module(module)
    finally:
        for name in hidden:
            del sys.modules[name]
