"""What a plan assumes of samples where there is no data to look at.

Numbers of samples are those of the paper's instruction mixture (arXiv 2412.14164, project page);
images and tokens of a sample are guesses: nothing published says them. `metamorph train --dry-run`
on your data replaces them with what is there.
"""

from dataclasses import dataclass

from metamorph.costs.flops import Workload, causal_pairs, later_pairs

PACKED = 0.95  # share of a row that is not padding
TEMPLATE = 10  # tokens around the two turns of a conversation


@dataclass(frozen=True)
class Family:
    """Samples alike. Of each: images in the prompt and in the answer, and tokens of text."""

    name: str
    samples: int  # thousands
    images_read: int
    images_drawn: int
    prompt_tokens: int
    answer_tokens: int

    def length(self, tokens_per_image: int) -> int:
        images = (self.images_read + self.images_drawn) * (tokens_per_image + 2)
        return TEMPLATE + images + self.prompt_tokens + self.answer_tokens

    def workload(self, tokens_per_image: int, prompt_images: str) -> Workload:
        length = self.length(tokens_per_image)
        whole = self.images_read if prompt_images == "bidirectional" else 0
        return Workload(
            tokens=length,
            visible_pairs=causal_pairs([length]) + later_pairs([tokens_per_image] * whole),
            text_targets=self.answer_tokens + 2 * self.images_drawn + 1,
            visual_targets=self.images_drawn * tokens_per_image,
            images=self.images_read + self.images_drawn,
        )


INSTRUCTION = (
    Family("image questions", 7067, 1, 0, 100, 250),
    Family("generation", 5000, 0, 1, 25, 8),
    Family("video questions", 1595, 16, 0, 30, 70),
    Family("pure video", 1413, 12, 12, 30, 5),
    Family("visual thinking", 509, 1, 1, 40, 30),
    Family("image to image", 482, 1, 1, 20, 5),
)
FAMILIES = {
    "language": (Family("text", 1, 0, 0, 100, 200),),
    "align": (Family("image and caption", 1, 1, 0, 15, 60),),
    "instruct": INSTRUCTION,
}


def assumed_row(
    stage: str, row_length: int, tokens_per_image: int, prompt_images: str
) -> tuple[Workload, float]:
    """The mean packed row of a stage, and how many samples are in it."""
    families = FAMILIES[stage]
    total = sum(family.samples for family in families)
    mean = Workload()
    for family in families:
        mean += family.workload(tokens_per_image, prompt_images) * (family.samples / total)
    samples = PACKED * row_length / mean.tokens
    padding = round((1 - PACKED) * row_length)
    return mean * samples + Workload(padding, causal_pairs([padding])), samples


def describe_families(stage: str, tokens_per_image: int) -> list[str]:
    """The assumption, a line for each family."""
    total = sum(family.samples for family in FAMILIES[stage])
    return [
        f"  {family.samples / total:5.1%} {family.name}: {family.images_read} images read, "
        f"{family.images_drawn} drawn, {family.prompt_tokens} + {family.answer_tokens} tokens of "
        f"text, {family.length(tokens_per_image)} in all"
        for family in FAMILIES[stage]
    ]
