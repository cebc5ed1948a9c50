"""Tokenizers with chat templates in the styles of well-known models, small enough to be trained
here: what a style writes, which of it are special tokens, and how its tokenizer cuts text."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["user assistant system model [INST] [/INST] hello world what is this?\n\n"] * 4
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    # As SmolLM2 and Qwen 2.5 have it: a system turn of its own where there is none.
    "chatml_default_system": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set start = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set start = '' %}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% set content = start + message['content'] if loop.index0 == 0 else message['content'] %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # With the tags by which a template says itself what is to be learned.
    "tagged": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # As Qwen 3: a response that is the last one is written in another way than earlier ones.
    "thinking": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}"
        "{% endif %}{{ message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # As Qwen 3 itself: thoughts are written before the last response alone.
    "qwen3": (
        "{% set ns = namespace(asked=0) %}"
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}"
        "{% endfor %}"
        "{% for message in messages %}"
        "{% set content, thought = message.content, '' %}"
        "{% if message.role == 'assistant' and '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
        "{% endif %}"
        "{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' and loop.index0 > ns.asked %}"
        "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
        "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # As Llama 3.1 and later: always a system turn, which has a date.
    "llama3": (
        "{{ bos_token }}{% set system = '' %}"
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
        "{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' }}"
        "{{ system + '<|eot_id|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
QWEN_TOKENS = ("<|endoftext|>", *CHATML_TOKENS)
SPECIAL = {
    "chatml": CHATML_TOKENS,
    "chatml_default_system": QWEN_TOKENS,
    "llama2": (),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    "tagged": CHATML_TOKENS,
    "thinking": CHATML_TOKENS,
    "qwen3": QWEN_TOKENS,
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
ENDS = {
    "llama2": "</s>", "mistral": "</s>", "gemma": "<end_of_turn>", "phi": "<|end|>",
    "llama3": "<|eot_id|>",
}  # fmt: skip
THINKING = ("thinking", "qwen3")
WITHOUT_SYSTEM = ("mistral", "gemma")


def end_of(style: str) -> str:
    return ENDS.get(style, "<|im_end|>")


def style_tokenizer(style: str) -> PreTrainedTokenizerFast:
    """Llama 2, Mistral and Gemma cut text at spaces and put one before it; the others are
    byte-level, and Llama 3 cuts at line ends. Phi's role tokens swallow the line end behind them;
    Qwen's think tokens are found in text, but are no special tokens, and it has no token that
    begins a text."""
    core = _spaces() if style in ("llama2", "mistral", "gemma") else _bytes(style == "llama3")
    core.add_special_tokens(
        [AddedToken(text, rstrip=style == "phi", normalized=False) for text in SPECIAL[style]]
    )
    if style in THINKING:
        core.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    if SPECIAL[style] == QWEN_TOKENS:
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.chat_template = TEMPLATES[style]
    return tokenizer


def _bytes(cuts_at_lines: bool) -> Tokenizer:
    core = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if cuts_at_lines:
        cuts.insert(0, pre_tokenizers.Split(Regex(r"\s*[\r\n]+"), "isolated"))
    core.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    core.decoder = decoders.ByteLevel()
    return _trained(core, pre_tokenizers.ByteLevel.alphabet())


def _spaces() -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    return _trained(core, [*map(chr, range(32, 127)), "é", "\n"])


def _trained(core: Tokenizer, alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return core
