"""MetaMorph: teach a pretrained language model to see and to draw by instruction tuning alone."""

from importlib import import_module

_HOMES = {
    "MetaMorph": "metamorph.model.unified",
    "Chat": "metamorph.chat",
    "VisualDecoder": "metamorph.decoder.pipeline",
    "FeatureAdapter": "metamorph.decoder.adapter",  # diffusers looks for its components here
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Imports a public class on first use, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'metamorph' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
