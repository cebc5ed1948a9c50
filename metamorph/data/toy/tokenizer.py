"""A byte-level BPE tokenizer for the toy world, in Hugging Face's format, with Llama-3's chat
tokens. Any text can be encoded; words of the toy world are single tokens."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from metamorph.data.conversation import ASSISTANT, USER
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.tokens import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_TEXT,
    END_OF_TURN,
    IMAGE_PLACEHOLDER,
    START_HEADER,
)

VOCABULARY_SIZE = 448
CORPUS_SAMPLES = 3000


def corpus() -> list[str]:
    """Every way of speaking in the toy world, from the training split."""
    weights = dict.fromkeys(KINDS, 1.0)
    texts = [f"{USER}\n\n", f"{ASSISTANT}\n\n"] * 100
    for index in range(CORPUS_SAMPLES):
        for turn in make_task(0, index, "train", weights).sample.turns:
            texts += [part for part in turn.text.split(IMAGE_PLACEHOLDER) if part]
    return texts


def build_toy_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer (below a second). It does not know the image tokens yet."""
    tokenizer = Tokenizer(models.BPE())
    # As Llama 3 does, line ends are cut off from the text behind them.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s*[\r\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [BEGIN_OF_TEXT, END_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_HEADER, END_HEADER],
    )
