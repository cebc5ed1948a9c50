"""The image processors of transformers that work by Pillow, whatever its release calls them."""

from typing import Any

import transformers


def pillow_processor(name: str) -> Any:
    """Of a model that transformers calls `name`. Before 5.4 the class has no suffix."""
    with_suffix = getattr(transformers, f"{name}ImageProcessorPil", None)
    return with_suffix or getattr(transformers, f"{name}ImageProcessor")
