"""MetaMorph: teach a pretrained language model to see and to draw by instruction tuning alone."""

import logging
from importlib import import_module

__version__ = "0.1.0"

# Where torchao is installed diffusers imports it, and both then report what they miss of each other
# and of this machine: five lines that concern nobody who asked for neither.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_HOMES = {
    "MetaMorph": "metamorph.model.unified",
    "Assistant": "metamorph.generation.assistant",
    "VisualDecoder": "metamorph.decoder.pipeline",
    "FeatureAdapter": "metamorph.decoder.adapter",  # diffusers looks for its components here
    "register_with_transformers": "metamorph.integrations.transformers.registration",
}
__all__ = list(_HOMES)  # pyrefly: ignore[unresolvable-dunder-all]  it lists what is lazy


def __getattr__(name: str):
    """Imports a public class on first use, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'metamorph' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
