"""A tokenizer's own chat template decides how conversations are written."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metamorph.cli.command import build_parser
from metamorph.cli.data_inputs import check_chat_format, read_data_inputs
from metamorph.data.conversation import ASSISTANT, SYSTEM, USER, ChatEncoder, Sample, Turn
from metamorph.errors import SampleError, UserError
from metamorph.model.chat_template import FIXED_DATE, LLAMA3
from metamorph.model.tokenizer import add_image_tokens
from tests.data.chat_styles import (
    CHATML,
    TEMPLATES,
    THINKING,
    WITHOUT_SYSTEM,
    end_of,
    style_tokenizer,
)

TOKENS_PER_IMAGE = 3
STYLES = sorted(TEMPLATES)
CONTROL_TEXTS = (
    "<|im_start|>", "<|im_end|>", "</s>", "<s>", "[INST]", "<end_of_turn>", "<|end|>", "<|user|>",
    "<image_start>", "<image_end>", "<think>", "</think>",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoders() -> dict[str, ChatEncoder]:
    found = {}
    for style in STYLES:
        tokenizer = style_tokenizer(style)
        add_image_tokens(tokenizer)
        found[style] = ChatEncoder(tokenizer, TOKENS_PER_IMAGE)
    return found


def sample(*texts: str, system: str | None = None) -> Sample:
    turns = [Turn((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, Turn(SYSTEM, system))
    images = sum(turn.text.count("<image>") for turn in turns)
    return Sample("s", tuple(turns), (None,) * images)


def supervised(encoder: ChatEncoder, document) -> list[str]:
    """The text of each stretch that is learned, special tokens included."""
    stretches, before = [], False
    for token, is_supervised in zip(document.token_ids, document.supervised, strict=True):
        if is_supervised and not before:
            stretches.append([])
        if is_supervised:
            stretches[-1].append(token)
        before = is_supervised
    return [encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in stretches]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "texts", [("hello", "world"), ("  what is\nthis? ", "A b", "é\n", " c d ")]
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_conversation_is_what_transformers_makes_of_it(encoders, style, texts, system):
    if system and style in WITHOUT_SYSTEM:
        return
    encoder, conversation = encoders[style], sample(*texts, system=system)
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    expected = encoder.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encoder.encode(conversation).token_ids == expected
    expected = encoder.tokenizer.apply_chat_template(
        messages[:-1], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    prompt = Sample("s", conversation.turns[:-1])
    assert encoder.encode_prompt(prompt).token_ids == expected


THOUGHTS = ("<think>\nsome hello\n</think>\n\n", "<think>think</think>", "<think>\n\n</think>\n\n",
            "<think> two\n\nlines \n</think>\n", " <think>\nafter a blank</think>\n\n")  # fmt: skip


@pytest.mark.parametrize("thought", THOUGHTS)
def test_thoughts_are_what_transformers_makes_of_them(encoders, thought):
    """Qwen 3 writes those before the last response, which learns them, and leaves out earlier
    ones."""
    encoder = encoders["qwen3"]
    said = ("hello", thought + "world", "what is", thought + "this?\n")
    test_a_conversation_is_what_transformers_makes_of_it(encoders, "qwen3", said, None)
    document = encoder.encode(sample(*said))
    spoken = thought.strip().removeprefix("<think>").removesuffix("</think>").strip("\n")
    learned = supervised(encoder, document)
    assert learned == [
        "world<|im_end|>", f"<think>\n{spoken}\n</think>\n\nthis?\n<|im_end|>",
    ]  # fmt: skip
    prompt = encoder.encode_prompt(sample(*said[:3]))
    assert document.token_ids[: len(prompt)] == prompt.token_ids


@pytest.mark.parametrize(
    "text", ["</think> x", "<think> x", "x <think>a</think>", "<think><think>a</think></think> x"]
)
def test_what_is_no_thought_is_text(encoders, text):
    encoder = encoders["qwen3"]
    [learned] = supervised(encoder, encoder.encode(sample("hi", text)))
    assert learned == f"<think>\n\n</think>\n\n{text}<|im_end|>"


def test_a_thought_with_a_picture_in_it_is_text(encoders):
    document = encoders["qwen3"].encode(sample("hi", "<think><image></think>x", "and", "y"))
    assert document.is_target == [True]


def test_what_a_model_learned_as_plain_text_gets_no_tokens():
    """Zephyr and TinyLlama write roles as text, and end turns by a token that they have."""
    tokenizer = style_tokenizer("llama2")
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    messages = [{"role": USER, "content": "what is"}, {"role": ASSISTANT, "content": "world"}]
    known = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    ids = add_image_tokens(tokenizer)
    assert ids["added_ids"] == sorted([ids["image_start_id"], ids["image_end_id"]])
    encoder = ChatEncoder(tokenizer, TOKENS_PER_IMAGE)
    assert encoder.encode(sample("what is", "world")).token_ids == known


@pytest.mark.parametrize("style", STYLES)
def test_responses_are_learned_up_to_the_token_that_ends_them(encoders, style):
    encoder = encoders[style]
    learned = supervised(encoder, encoder.encode(sample("hi", "one", "and", "two")))
    end = end_of(style)
    thought = "<think>\n\n</think>\n\n" if style in THINKING else ""
    assert [text.replace(" ", "") for text in learned] == [f"one{end}", f"{thought}two{end}"]
    assert encoder.tokenizer.decode([encoder.end_of_turn]) == end


@pytest.mark.parametrize("style", STYLES)
def test_images_stand_where_the_turn_has_them(encoders, style):
    encoder = encoders[style]
    document = encoder.encode(sample("<image>\nwhat is this?", "see <image> here"))
    assert document.is_target == [False, True]
    for first, end in document.spans:
        assert end - first == TOKENS_PER_IMAGE
        assert document.token_ids[first - 1] == encoder.image_start
        assert document.token_ids[end] == encoder.image_end
    first, end = document.spans[1]
    learned = document.supervised
    assert learned[first - 1] and learned[end] and not any(learned[first:end])


text = st.lists(st.sampled_from([*CONTROL_TEXTS, "<image>", " ", "\n", "a b", "é", "x"])).map(
    "".join
)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=25)
@given(texts=st.lists(text, min_size=2, max_size=4), with_system=st.booleans())
@example(texts=["", ""], with_system=False)
@example(texts=["[INST] </s>", "</s> x"], with_system=False)
def test_text_never_becomes_control_and_prompts_are_how_training_begins(
    encoders, style, texts, with_system
):
    encoder = encoders[style]
    texts = texts[: len(texts) // 2 * 2]
    system = "Be brief." if with_system and style not in WITHOUT_SYSTEM else None
    whole = sample(*texts, system=system)
    document = encoder.encode(whole)
    # As many control tokens as the same turns have with harmless text, and of images.
    plain = encoder.encode(sample(*("y" * len(texts)), system=system))
    special = set(encoder.tokenizer.all_special_ids) | {
        id for id, token in encoder.tokenizer.added_tokens_decoder.items() if token.special
    }

    def controls(token_ids) -> list[int]:
        images = (encoder.image_start, encoder.image_end)
        return [token for token in token_ids if token in special and token not in images]

    assert controls(document.token_ids) == controls(plain.token_ids)
    assert document.token_ids.count(encoder.image_end) == len(whole.images)
    for turn, spoken in enumerate(whole.turns):
        if spoken.role == USER:
            turns = whole.turns[: turn + 1]
            images = sum(turn.text.count("<image>") for turn in turns)
            prompt = encoder.encode_prompt(Sample("s", turns, (None,) * images))
            assert document.token_ids[: len(prompt)] == prompt.token_ids
            assert document.supervised[len(prompt)] and not document.supervised[len(prompt) - 1]


@pytest.mark.parametrize("style", WITHOUT_SYSTEM)
def test_a_template_without_a_system_role_makes_the_sample_a_skip(encoders, style):
    with pytest.raises(SampleError, match="sample s: the chat template says: .*support") as caught:
        encoders[style].encode(sample("hi", "yes", system="Be brief."))
    assert caught.value.cause == "refused by the chat template"


def with_template(source: str, style: str = "chatml"):
    tokenizer = style_tokenizer(style)
    tokenizer.chat_template = source
    return tokenizer


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token ends a response"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out, repeats or moves a turn"),
        ("{{ messages", "chat template: cannot be used"),
        ("\n{{ 1 // 0 }}", "training: the chat template cannot be carried out in line 2"),
        ("{{ messages[0].role.first.name }}", "the chat template says: there is no 'first'"),
        ("{{ none + messages }}", "the chat template cannot be carried out in line 1"),
        # It lets a response begin with a thought, which no response in a conversation has.
        (CHATML.replace("assistant\n'", "assistant\n<think>'"), "in another way than what stands"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        add_image_tokens(with_template(source))


def test_a_template_that_drops_the_system_turn_makes_the_sample_a_skip():
    source = CHATML.replace("in messages", "in messages if message.role != 'system'")
    tokenizer = with_template(source)
    add_image_tokens(tokenizer)
    encoder = ChatEncoder(tokenizer, 1)
    encoder.encode(sample("hi", "yes"))
    with pytest.raises(SampleError, match="leaves out, repeats or moves a turn of system, user"):
        encoder.encode(sample("hi", "yes", system="Be brief."))


def test_a_tokenizer_without_a_template_names_the_key():
    with pytest.raises(
        UserError, match=r"model.chat_template: .* lacks .*<\|eot_id\|>; give a file"
    ):
        add_image_tokens(with_template(None))


def test_encode_says_so_before_it_reads_a_picture(tmp_path):
    with_template(None).save_pretrained(tmp_path / "llama")
    run = tmp_path / "run.yaml"
    run.write_text(f"stage: align\noutput: out\nmodel:\n  language: {tmp_path}/llama\n")
    parser = build_parser()
    arguments = parser.parse_args(["encode", str(run), "--output", str(tmp_path / "features")])
    arguments.unknown_arguments = []
    with pytest.raises(UserError, match="model.chat_template: the tokenizer has no chat template"):
        check_chat_format(read_data_inputs(arguments))


def test_the_key_decides_over_the_tokenizer(tmp_path):
    """Control tokens that the template writes and the tokenizer lacks are added to it."""
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    tokenizer = style_tokenizer("llama2")
    size = len(tokenizer)
    ids = add_image_tokens(tokenizer, str(path))
    names = ["<image_start>", "<image_end>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(names) == ids["added_ids"] == [*range(size, size + 4)]
    assert tokenizer.convert_ids_to_tokens(ids["eos_ids"]) == ["</s>", "<|im_end|>"]
    document = ChatEncoder(tokenizer, 1).encode(sample("hi", "yes"))
    assert document.token_ids.count(size + 3) == 2
    assert add_image_tokens(tokenizer)["added_ids"] == [size, size + 1]  # nothing is new any more

    tokenizer = style_tokenizer("chatml")
    add_image_tokens(tokenizer, "llama3")
    assert tokenizer.chat_template == LLAMA3
    with pytest.raises(UserError, match="model.chat_template: .*none.jinja cannot be read"):
        add_image_tokens(tokenizer, str(tmp_path / "none.jinja"))


def test_a_control_token_that_was_found_in_any_text_becomes_a_special_one():
    tokenizer = style_tokenizer("llama2")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])  # by who did not know better
    tokenizer.chat_template = CHATML
    add_image_tokens(tokenizer)
    encoder = ChatEncoder(tokenizer, 1)
    harmless, hostile = (
        encoder.encode(sample(text, "yes")).token_ids for text in ("x", "x<|im_end|>")
    )
    assert hostile.count(encoder.end_of_turn) == harmless.count(encoder.end_of_turn) == 2
    assert encoder.decode([encoder.end_of_turn]) == ""


def test_the_default_of_several_templates_is_taken():
    tokenizer = with_template({"tool_use": "{{ 1 }}", "default": CHATML})
    add_image_tokens(tokenizer)
    assert tokenizer.chat_template == CHATML


def test_a_template_with_the_date_gives_the_same_tokens_every_day():
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML
    tokenizer = with_template(dated)
    add_image_tokens(tokenizer)
    add_image_tokens(tokenizer)  # as on loading
    assert tokenizer.chat_template == FIXED_DATE + dated
    encoder = ChatEncoder(tokenizer, 1)
    written = tokenizer.decode(encoder.encode(sample("hi", "yes")).token_ids)
    assert written.startswith("26 Jul 2024")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == written
