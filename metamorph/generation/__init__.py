"""Text and images from prompts: continuous batching over a static cache."""

from metamorph.generation.batch import generate
from metamorph.generation.engine import Engine, EngineOptions
from metamorph.generation.messages import Drawing, Message, question
from metamorph.generation.prompt import Prompt
from metamorph.generation.sequence import Generation, ImageSegment, Step, TextSegment
from metamorph.generation.settings import GREEDY, AnswerSettings, DrawingSettings, Sampling

__all__ = [
    "GREEDY",
    "AnswerSettings",
    "Drawing",
    "DrawingSettings",
    "Engine",
    "EngineOptions",
    "Generation",
    "ImageSegment",
    "Message",
    "Prompt",
    "Sampling",
    "Step",
    "TextSegment",
    "generate",
    "question",
]
