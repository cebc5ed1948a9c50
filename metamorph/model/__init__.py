"""The unified model: language model, vision encoder, and the two small networks between."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metamorph.model.encoders import open_vision
    from metamorph.model.language import Llama
    from metamorph.model.language_config import LanguageConfig
    from metamorph.model.opening import assemble
    from metamorph.model.tokenizer import add_image_tokens
    from metamorph.model.unified import MetaMorph, MetaMorphConfig
    from metamorph.model.vision import VisionEncoder

_HOMES = {
    "LanguageConfig": "language_config",
    "Llama": "language",
    "MetaMorph": "unified",
    "MetaMorphConfig": "unified",
    "VisionEncoder": "vision",
    "add_image_tokens": "tokenizer",
    "assemble": "opening",
    "open_vision": "encoders",
}
__all__ = [
    "LanguageConfig",
    "Llama",
    "MetaMorph",
    "MetaMorphConfig",
    "VisionEncoder",
    "add_image_tokens",
    "assemble",
    "open_vision",
]


def __getattr__(name: str):
    """Imports a public name on first use: an answer needs neither transformers' encoder nor what
    puts models together."""
    if name not in _HOMES:
        raise AttributeError(f"module 'metamorph.model' has no attribute {name!r}")
    return getattr(import_module(f"metamorph.model.{_HOMES[name]}"), name)
