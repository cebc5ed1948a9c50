"""Text and images from prompts: a batched state machine over a static cache."""

from metamorph.generation.engine import Prompt, generate
from metamorph.generation.row import Generation, ImageSegment, Step, TextSegment
from metamorph.generation.sampling import GREEDY, Sampling

__all__ = [
    "GREEDY",
    "Generation",
    "ImageSegment",
    "Prompt",
    "Sampling",
    "Step",
    "TextSegment",
    "generate",
]
