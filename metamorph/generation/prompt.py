"""One prompt as the model reads it."""

from collections import abc
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from metamorph.model.unified import MetaMorphConfig


@dataclass(frozen=True)
class Prompt:
    """One prompt with its image slots already expanded.

    Attributes:
        token_ids: L ids; those at visual positions are ignored but must be valid (pad).
        visual_positions: places of the features within the prompt, ascending.
        features: [images, tokens, C] unit vectors, or None without images.
        bidirectional_spans: (start, end) of images that were trained to see themselves whole.
        image_keys: for each image an integer that no other image has, 0 to 2**62: by these a later
            prompt is known to go on from this one. Without them no image is known again.
    """

    token_ids: abc.Sequence[int]
    visual_positions: abc.Sequence[int] = ()
    features: Tensor | None = None
    bidirectional_spans: abc.Sequence[tuple[int, int]] = ()
    image_keys: abc.Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    def keys(self, tokens_per_image: int) -> list[int]:
        """What stands at each of its L places, comparable between prompts: token ids, and for
        visual places negative numbers, which depend on whether the image sees itself whole."""
        keys = list(self.token_ids)
        whole = {p for start, end in self.bidirectional_spans for p in range(start, end)}
        for number, position in enumerate(self.visual_positions):
            image, place = divmod(number, tokens_per_image)
            if self.image_keys:
                keys[position] = visual_key(self.image_keys[image], place, position in whole)
            else:
                keys[position] = UNKNOWN
        return keys


UNKNOWN = -1  # equals nothing: see `common_length`


def visual_key(image_key: int, place: int, whole: bool = False) -> int:
    """What stands at one place of an image, as a negative number."""
    return -2 - ((image_key * 2 + whole) * 2**16 + place)


def common_length(known: abc.Sequence[int], keys: abc.Sequence[int]) -> int:
    """How many places at the beginning of both are the same."""
    for length, (one, other) in enumerate(zip(known, keys, strict=False)):
        if one != other or one == UNKNOWN:
            return length
    return min(len(known), len(keys))


def check_prompt(config: MetaMorphConfig, name: str, prompt: Prompt) -> None:
    """Raises `ValueError`, beginning with `name`, for parts that do not fit together."""
    length = len(prompt)
    if length == 0:
        raise ValueError(f"{name}.token_ids: expected at least one token, got none")
    images, *shape = [0] if prompt.features is None else prompt.features.shape
    tokens, width = config.tokens_per_image, config.visual_width
    if images and shape != [tokens, width]:
        raise ValueError(
            f"{name}.features: expected [images, {tokens}, {width}], got {[images, *shape]}"
        )
    if len(prompt.visual_positions) != images * tokens:
        raise ValueError(
            f"{name}.visual_positions: expected {images * tokens}, {tokens} an image, "
            f"got {len(prompt.visual_positions)}"
        )
    if prompt.image_keys and len(prompt.image_keys) != images:
        raise ValueError(
            f"{name}.image_keys: expected one for each of {images} images, "
            f"got {len(prompt.image_keys)}"
        )
    positions = prompt.visual_positions
    if any(one >= other for one, other in pairwise(positions)):
        raise ValueError(f"{name}.visual_positions: expected ascending places")
    outside = [position for position in positions if not 0 <= position < length]
    if outside:
        raise ValueError(f"{name}.visual_positions: {outside[0]} is outside its {length} tokens")
