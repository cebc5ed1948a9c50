"""The chat format of a model: how turns are written, by a jinja template as transformers reads it.

Turns are rendered with marks in place of what they say, and the text of the samples is put in
afterwards: so no text of a sample is ever taken for a control token or for a part of the template.
"""

import json
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from metamorph.errors import SampleError, UserError
from metamorph.tokens import BEGIN_OF_TEXT, END_HEADER, END_OF_TURN, START_HEADER

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
LLAMA3_TOKENS = (BEGIN_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN)
LLAMA3_NAME = "llama3"  # in place of a file
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
# A sample must give the same tokens on every day: templates that write the date get a fixed one.
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
CONTROL_NAME = re.compile(r"<\|[^<>|\s]+\|>|<[a-z]+(?:_[a-z]+)+>")  # <|im_end|>, <end_of_turn>
MOST_TURNS = 1000
FILE_NAME = "<template>"  # as jinja calls a template that came as text
MISSING = re.compile(r"'[^']*' has no attribute")  # jinja, of a name that is not there
REFUSED = "refused by the chat template"  # the cause of a skip

THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"  # as Qwen 3 and others write them

# Characters for private use, which stand for a turn's text or its thought, and for what generation
# tags enclose.
FIRST_MARK = 0xF0000
BEGIN, END = "\U0010fff0", "\U0010fff1"
MARK = re.compile(f"[{chr(FIRST_MARK)}-{chr(FIRST_MARK + 2 * MOST_TURNS)}]")

Skeleton = tuple[tuple[str, str], ...]  # role, and its text with a mark in place of the words


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation: a control token, other text, or what a turn says."""

    text: str  # empty where a turn speaks
    turn: int | None = None  # or `thought_of` it
    is_control: bool = False
    supervised: bool = False
    begins_response: bool = False  # the prompt of a response ends before it


class _Generation(Extension):
    """`{% generation %}`, by which templates mark what the model has to learn."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller) -> str:
        return BEGIN + caller() + END


def _refuse(message: str):
    raise TemplateError(message)


def _complaint(error: Exception) -> str:
    """What became of a template, in words for whoever wrote it. Only what jinja and the template
    themselves say is worth repeating: Python's messages are about values that nobody sees."""
    if isinstance(error, TemplateError):
        return f"says: {MISSING.sub('there is no', str(error))}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE_NAME]
    return f"cannot be carried out{f' in line {lines[-1]}' if lines else ''}"


def _to_json(value, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Jinja's own would escape what HTML would misread."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


@lru_cache(16)
def _compiled(source: str) -> Template:
    """As transformers compiles it; templates of others run in a sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    return environment.from_string(source, globals={"raise_exception": _refuse})


@dataclass(frozen=True, eq=False)  # layouts are kept by which object it is
class ChatTemplate:
    """A template with the tokens that it may write. It holds no state: processes may share it.

    `named`: bos_token and its like, by name. `added`: the tokens that a tokenizer finds in text
    before anything else; `special`: those of them that are control tokens.
    """

    source: str
    named: dict[str, str]
    added: tuple[str, ...]
    special: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer) -> "ChatTemplate":
        """That of a tokenizer which has one."""
        named = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
        tokens = tokenizer.added_tokens_decoder.values()
        special = tuple(token.content for token in tokens if token.special)
        return cls(tokenizer.chat_template, named, tuple(map(str, tokens)), special)

    @property
    def parts_text(self) -> bool:
        """Whether template and turn are encoded apart: Meta's own code does so, for Llama 3."""
        return self.source == LLAMA3

    @property
    def parts_thoughts(self) -> bool:
        """Whether it writes thoughts before a response in a way of its own, or leaves them out."""
        return THOUGHT_END in self.source

    @cached_property
    def added_pattern(self) -> re.Pattern:
        return _any_of(self.added)

    @cached_property
    def special_pattern(self) -> re.Pattern:
        return _any_of(self.special)

    def render(self, skeleton: Skeleton, begin_response: bool = False) -> str:
        """The conversation as text. `SampleError` if the template refuses it."""
        messages = [{"role": role, "content": text} for role, text in skeleton]
        try:
            return _compiled(self.source).render(
                messages=messages, add_generation_prompt=begin_response, **self.named
            )
        except Exception as error:  # a template is a program of the user's and may raise anything
            raise SampleError(REFUSED, f"the chat template {_complaint(error)}") from error

    def pieces(self, skeleton: Skeleton, begin_response: bool) -> tuple[Piece, ...]:
        """What the conversation consists of, responses supervised up to the token that ends them.

        `SampleError` for one that the template refuses, or writes in a way that a prompt would not
        be how training begins.
        """
        return _layout(self, skeleton, begin_response)

    def end_of_response(self) -> str:
        """The token that ends a response. `UserError` if the template cannot be trained with."""
        try:
            pieces = self.pieces(_PROBE, False)
        except SampleError as error:
            raise UserError(f"chat template: cannot be used for training: {error}") from error
        turn, ends = None, []
        for piece in pieces:
            turn = turn if piece.turn is None else piece.turn
            if piece.is_control and turn is not None and _PROBE[turn][0] == ASSISTANT:
                ends.append((turn, piece.text))
                turn = None
        if [turn for turn, _ in ends] != [1, 3]:
            raise UserError(
                "chat template: no special token ends a response, so generation could not stop; "
                "write {{ eos_token }} after each"
            )
        return ends[-1][1]

    def ends_responses(self) -> bool:
        """Whether a special token ends each response."""
        try:
            self.end_of_response()
        except UserError:
            return False
        return True

    def control_names(self) -> list[str]:
        """The control tokens that it writes, by their form: a tokenizer may lack some."""
        try:
            written = self.render(_PROBE) + self.render(_PROBE[:1], begin_response=True)
        except SampleError as error:
            raise UserError(f"chat template: cannot be used for training: {error}") from error
        return list(dict.fromkeys(CONTROL_NAME.findall(written)))


def _any_of(texts: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def mark_of(turn: int) -> str:
    return chr(FIRST_MARK + turn)


def thought_of(turn: int) -> int:
    """Under which number the thought of a turn stands among the turns."""
    return MOST_TURNS + turn


_PROBE: Skeleton = tuple((role, mark_of(i)) for i, role in enumerate((USER, ASSISTANT) * 2))


@lru_cache(4096)
def _layout(template: ChatTemplate, skeleton: Skeleton, begin_response: bool) -> tuple[Piece, ...]:
    written = template.render(skeleton, begin_response)
    tagged = list(_tagged(written))
    text = _untagged(written)
    found = MARK.findall(text)
    said = MARK.findall("".join(text for _, text in skeleton))
    # Thoughts may be left out, as those of earlier turns are.
    if found != [mark for mark in said if mark in found or mark < mark_of(thought_of(0))]:
        roles = ", ".join(role for role, _ in skeleton[:8])
        message = f"the chat template leaves out, repeats or moves a turn of {roles}"
        raise SampleError(REFUSED, message)
    responses = list(_responses(template, skeleton, text))
    return tuple(_cut(template, text, tagged or responses, responses))


def _responses(template: ChatTemplate, skeleton: Skeleton, text: str) -> Iterator[tuple[int, int]]:
    """Of each response, where the prompt before it ends, and the end of the token that ends it."""
    for turn, (role, _) in enumerate(skeleton):
        if role != ASSISTANT:
            continue
        prompt = _untagged(template.render(skeleton[:turn], begin_response=True))
        if not text.startswith(prompt):
            message = (
                f"the chat template writes the prompt of turn {turn} in another way than what "
                f"stands before this turn in the whole conversation"
            )
            raise SampleError(REFUSED, message)
        end = template.special_pattern.search(text, text.index(mark_of(turn)))
        yield len(prompt), end.end() if end else len(text)


def _untagged(written: str) -> str:
    return written.replace(BEGIN, "").replace(END, "")


def _tagged(written: str) -> Iterator[tuple[int, int]]:
    """What generation tags enclose, by its places in the untagged text."""
    for number, match in enumerate(re.finditer(f"{BEGIN}(.*?){END}", written, re.DOTALL)):
        start = match.start() - 2 * number
        yield start, start + len(match.group(1))


def _cut(
    template: ChatTemplate,
    text: str,
    supervised: list[tuple[int, int]],
    responses: list[tuple[int, int]],
) -> Iterator[Piece]:
    """`text` at marks, added tokens, the bounds of what is supervised and the ends of prompts."""
    bounds = {0, len(text), *(start for start, _ in responses)}
    bounds = sorted(bounds.union(*supervised))
    begun = {start for start, _ in responses}
    for start, end in zip(bounds, bounds[1:], strict=False):
        inside = any(first <= start < last for first, last in supervised)
        begins, at = start in begun, start
        stops = [
            *MARK.finditer(text, start, end),
            *template.added_pattern.finditer(text, start, end),
        ]
        for match in sorted(stops, key=re.Match.start):
            if match.start() > at:
                yield Piece(text[at : match.start()], None, False, inside, begins)
            begins = begins and at == match.start()
            found, at = match.group(), match.end()
            if MARK.fullmatch(found):
                yield Piece("", ord(found) - FIRST_MARK, False, inside, begins)
            else:
                yield Piece(found, None, True, inside, begins)
            begins = False
        if at < end:
            yield Piece(text[at:end], None, False, inside, begins)
