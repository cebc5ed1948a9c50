"""The body of /v1/chat/completions: OpenAI's fields, and those of a model that draws."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from metamorph.config.keys import MAX_SEED
from metamorph.serving.fields import Fields, Interval, Sampler, Share, Text, only

MOST_STOPS, LONGEST_STOP = 16, 1000
MOST_STEPS = 1000  # of denoising


def _form(value: Any) -> str:
    return "as list" if isinstance(value, list) else "as text"


class TextPart(Fields):
    type: Literal["text"]
    text: Text


class ImageUrl(Fields):
    url: Text
    detail: Literal["auto", "low", "high"] | None = None  # pictures have one size here


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl
    index: int | None = None  # as in the answer that it comes from


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[Text, Tag("as text")] | Annotated[list[Part], Tag("as list")], Discriminator(_form)
]
Stops = Annotated[
    Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP), Tag("as text")]
    | Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]],
        Field(max_length=MOST_STOPS),
        Tag("as list"),
    ],
    Discriminator(_form),
]


class SystemMessage(Fields):
    role: Literal["system", "developer"]
    content: Content
    name: Text | None = None


class UserMessage(Fields):
    role: Literal["user"]
    content: Content
    name: Text | None = None


class AssistantMessage(Fields):
    """An earlier answer, as this server gave it or as a client wrote it."""

    role: Literal["assistant"]
    content: Content | None = None
    images: list[ImagePart] | None = None  # beside the text, as with `modalities`
    name: Text | None = None
    refusal: Annotated[Any, only(None)] = None
    audio: Annotated[Any, only(None)] = None
    tool_calls: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None)] = None
    annotations: Annotated[Any, only(None, [])] = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # there is none


class ResponseFormat(Fields):
    type: Literal["text"]


class ChatRequest(Fields):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Text | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text", "image"]] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_images: Annotated[int, Field(ge=0)] | None = None
    image_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    image_sampler: Sampler | None = None
    image_guidance: Annotated[float, Field(ge=0)] | None = None
    image_guidance_rescale: Share | None = None
    image_guidance_interval: Interval | None = None
    image_previews: Annotated[int, Field(ge=0)] | None = None
    reencode: bool | None = None

    # What is not here: a value that would change the answer is refused by name.
    audio: Annotated[Any, only(None)] = None
    frequency_penalty: Annotated[Any, only(None, 0, 0.0)] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    functions: Annotated[Any, only(None, [])] = None
    logit_bias: Annotated[Any, only(None, {})] = None
    logprobs: Annotated[Any, only(None, False)] = None
    moderation: Annotated[Any, only(None)] = None
    prediction: Annotated[Any, only(None)] = None
    presence_penalty: Annotated[Any, only(None, 0, 0.0)] = None
    reasoning_effort: Annotated[Any, only(None, "none")] = None
    response_format: ResponseFormat | None = None
    tool_choice: Annotated[Any, only(None, "none", "auto")] = None
    tools: Annotated[Any, only(None, [])] = None
    top_logprobs: Annotated[Any, only(None, 0)] = None
    verbosity: Annotated[Any, only(None, "medium")] = None
    web_search_options: Annotated[Any, only(None)] = None

    # What changes no answer is taken and not looked at.
    metadata: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None
