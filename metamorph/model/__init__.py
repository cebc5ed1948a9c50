"""The unified model: language model, vision encoder, and the two small networks between."""

from metamorph.model.language import Llama
from metamorph.model.language_config import LanguageConfig
from metamorph.model.opening import add_image_tokens, assemble
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.model.vision import VisionEncoder

__all__ = [
    "LanguageConfig",
    "Llama",
    "MetaMorph",
    "MetaMorphConfig",
    "VisionEncoder",
    "add_image_tokens",
    "assemble",
]
