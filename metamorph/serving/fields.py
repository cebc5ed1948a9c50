"""How fields of requests are read: strictly, unknown ones refused, and each fault named."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from metamorph.decoder.samplers import SAMPLERS
from metamorph.errors import printable, shown
from metamorph.serving.refusals import Refused, invalid

LONGEST_NAME = 100
QUOTE = "'"
OF_UNIONS = ("messages", "as list")  # lists whose items are of several kinds
TAGGED = "as "  # how the branches of a union are called where pydantic says which it took


class Fields(BaseModel):
    """An object of a request. No type is guessed: "1" is no number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _names_are_known(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields:
                nearest = difflib.get_close_matches(name[:LONGEST_NAME], cls.model_fields, cutoff=0)
                raise PydanticCustomError(
                    "unknown_field",
                    "unknown field, the nearest is {nearest}",
                    {"name": printable(name[:LONGEST_NAME]), "nearest": nearest[0]},
                )
        return data


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        raise PydanticCustomError("half_character", "there is half of a character in it") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


def _smaller_first(interval: list[float]) -> list[float]:
    if interval[0] > interval[1]:
        raise PydanticCustomError("out_of_order", "expected the smaller number first")
    return interval


def _known_sampler(name: str) -> str:
    if name not in SAMPLERS:
        expected = ", ".join(SAMPLERS)
        raise PydanticCustomError("unknown_sampler", "expected one of {all}", {"all": expected})
    return name


Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2), AfterValidator(_smaller_first)]
Sampler = Annotated[str, AfterValidator(_known_sampler)]


def only(*values: Any) -> AfterValidator:
    """Of a field for something that does not exist here: the values that do not ask for it."""

    def check(value: Any) -> Any:
        if not any(value == one and type(value) is type(one) for one in values):
            expected = " or ".join("null" if one is None else shown(one) for one in values)
            raise PydanticCustomError(
                "unsupported_value",
                "not supported here, expected {expected}",
                {"expected": expected},
            )
        return value

    return AfterValidator(check)


def refusal(errors: Sequence[Any]) -> Refused:
    """The first of pydantic's errors as an answer, in which its field has a name as in JavaScript:
    `messages[0].content`."""
    error = errors[0]
    kind = error["type"]
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", "damaged")
        return invalid(None, f"the body is no JSON: {reason}", "invalid_json")
    place = list(error["loc"])[1:]  # without "body"
    name = ""
    for at, step in enumerate(place):
        if isinstance(step, int):
            name += f"[{step}]"
        elif step.startswith(TAGGED) or (at > 1 and place[at - 2] in OF_UNIONS):
            continue  # which branch of a union it is
        else:
            name += f".{step}" if name else step
    if kind == "unknown_field":
        name = f"{name}.{error['ctx']['name']}" if name else error["ctx"]["name"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = error["ctx"]
        name += f".{context['discriminator'].strip(QUOTE)}"
        expected = context.get("expected_tags", "a value")
        message = f"expected one of {expected}, got {shown(context.get('tag'))}"
        return invalid(name, f"{name}: {message}", kind)
    if not name:
        return invalid(None, "the body has to be a JSON object", "invalid_json")
    message = error["msg"].removeprefix("Input ")
    if kind == "missing":
        message = "this field is required"
    return invalid(name, f"{name}: {message}", kind)
