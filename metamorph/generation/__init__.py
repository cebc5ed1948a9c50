"""Text and images from prompts: a batched state machine over a static cache."""

from metamorph.generation.engine import Prompt, generate
from metamorph.generation.sampling import GREEDY, Sampling
from metamorph.generation.sequence import Generation, ImageSegment, Step, TextSegment

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
