"""The bodies of /v1/images/generations and of what the page asks for beside a conversation."""

from typing import Annotated, Any, Literal

from pydantic import Field

from metamorph.config.keys import MAX_SEED
from metamorph.serving.chat_request import MOST_STEPS
from metamorph.serving.fields import Fields, Interval, Sampler, Share, Text, only

LEAST_SIDE, MOST_SIDE = 16, 4096  # pixels of a picture that is asked for
MOST_PARTIAL = 8
SIZE = r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$"


class ImagesRequest(Fields):
    prompt: Annotated[Text, Field(min_length=1)]
    model: Text | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: Annotated[Text, Field(pattern=SIZE)] | None = None  # None, auto: as the decoder draws
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    sampler: Sampler | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    guidance_rescale: Share | None = None
    guidance_interval: Interval | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MOST_PARTIAL)] | None = None
    response_format: Literal["b64_json"] | None = None

    # What is not here: a value that would change the picture is refused by name.
    background: Annotated[Any, only(None, "auto", "opaque")] = None
    complexity: Annotated[Any, only(None)] = None
    frame_count: Annotated[Any, only(None, 1)] = None
    frame_duration_ms: Annotated[Any, only(None)] = None
    output_compression: Annotated[Any, only(None, 100)] = None
    output_format: Annotated[Any, only(None, "png")] = None
    quality: Annotated[Any, only(None, "auto", "standard")] = None
    style: Annotated[Any, only(None)] = None
    svg: Annotated[Any, only(None)] = None

    # What changes no picture is taken and not looked at.
    moderation: Any = None
    safety_identifier: Any = None
    user: Any = None


class SeenRequest(Fields):
    image_url: Text


class RedrawRequest(Fields):
    image_url: Text
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    sampler: Sampler | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    guidance_rescale: Share | None = None
    guidance_interval: Interval | None = None
