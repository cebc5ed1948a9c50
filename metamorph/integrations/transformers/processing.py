"""The processor of a model folder: conversations to what the model of transformers takes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from metamorph.config.data_keys import MAX_PIXELS
from metamorph.data.conversation import ChatEncoder, Sample
from metamorph.data.images import open_image
from metamorph.errors import SampleError, UserError, shown
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Message
from metamorph.integrations.transformers.configuration import FROM_HUB
from metamorph.model.encoder_files import saved_preprocessing
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json, read_tokenizer, write_json
from metamorph.tokens import IMAGE_END, IMAGE_START

FILE = "processor_config.json"
READ = ("*.json", "*.jinja", "encoder/*.json")  # of a repository on the Hub
ROLES = (USER, ASSISTANT, SYSTEM)
WRITTEN = IMAGE_START + IMAGE_END  # an image in text


class MetaMorphProcessor(ProcessorMixin):
    """Conversations to token ids and pixel values, exactly as training and `Assistant` do it.

    Args:
        tokenizer: with a chat template and the image tokens.
        tokens_per_image: how many tokens an image has.
        image_size: S, the side in pixels of the squares that pictures are squashed to.
        mean, std, resample: as `VisionEncoder` has them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_image: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resample: int,
    ):
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        self.encoder = ChatEncoder(tokenizer, tokens_per_image)
        self.settings = {
            "tokens_per_image": tokens_per_image,
            "image_size": image_size,
            "mean": list(mean),
            "std": list(std),
            "resample": resample,
        }
        # It has no network: of an encoder only what it does before.
        self.pictures = VisionEncoder(image_size, 1, 1, mean, std, Image.Resampling(resample))

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def apply_chat_template(
        self,
        conversation: Sequence,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        continue_final_message: bool = False,
        padding: bool = True,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """A conversation, or several, by the chat template that the model was trained with.

        A message is `{"role": ..., "content": ...}`, its content a text or a list of
        `{"type": "text", "text": ...}` and `{"type": "image", "image": picture or path}`. What a
        text says is never taken for a control token.

        With `tokenize`, the fields of `__call__`, and with `return_assistant_tokens_mask` also
        `assistant_masks` [B, T], 1 for text that the model has to learn; without `return_dict`
        the ids alone. Without `tokenize`, text for `__call__`. Pipelines give `padding` and
        `return_tensors` as `processor_kwargs`. Raises `UserError`, also if a response is to be
        continued.
        """
        if continue_final_message:
            raise UserError("continue_final_message: an answer is begun anew here, not continued")
        how: dict[str, Any] = {"padding": padding, "return_tensors": return_tensors}
        how |= processor_kwargs or {}
        if unknown := how.keys() - {"padding", "return_tensors"}:
            raise UserError(f"processor_kwargs: {min(unknown)} is not known here")
        is_one = bool(conversation) and isinstance(conversation[0], dict)
        samples = [_sample(turns) for turns in ([conversation] if is_one else conversation)]
        try:
            if not tokenize:
                texts = [self._text(sample, add_generation_prompt) for sample in samples]
                return texts[0] if is_one else texts
            documents = [self.encoder.document(s, add_generation_prompt) for s in samples]
        except SampleError as error:
            raise UserError(f"conversation: {error}") from error
        pictures = [picture for document in documents for picture in document.images]
        inputs = self._inputs([d.token_ids for d in documents], pictures, how["padding"])
        if return_assistant_tokens_mask:
            masks = [[int(learned) for learned in d.supervised] for d in documents]
            inputs["assistant_masks"] = self._padded(masks, 0) if how["padding"] else masks
        batch = BatchFeature(inputs, tensor_type=how["return_tensors"])
        return batch if return_dict else batch["input_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        padding: bool = True,
        add_special_tokens: bool = False,
    ) -> BatchFeature:
        """Text as `apply_chat_template` writes it, and its pictures in order, however nested:
        `input_ids` and `attention_mask` [B, T], and `pixel_values` [images, 3, S, S] if there are
        any. Control tokens in a text are control tokens here.

        Raises ValueError if there are not as many pictures as places for them.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = list(_flat(images))
        places = sum(each.count(WRITTEN) for each in texts)
        if places != len(pictures):
            raise ValueError(f"images: expected one for each of {places} places, {WRITTEN} in "
                             f"text, got {len(pictures)}")  # fmt: skip
        whole = IMAGE_START * (1 + self.encoder.tokens_per_image) + IMAGE_END
        rows = [
            self.tokenizer(each.replace(WRITTEN, whole), add_special_tokens=add_special_tokens)
            for each in texts
        ]
        inputs = self._inputs([row["input_ids"] for row in rows], pictures, padding)
        return BatchFeature(inputs, tensor_type=return_tensors)

    def _text(self, sample: Sample, add_generation_prompt: bool) -> str:
        messages = [
            {"role": turn.role, "content": WRITTEN.join(turn.words)} for turn in sample.turns
        ]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _inputs(self, rows: list[list[int]], pictures: list, padding: bool) -> dict[str, Any]:
        real = [[1] * len(row) for row in rows]
        if padding:
            rows, real = self._padded(rows, self.tokenizer.pad_token_id), self._padded(real, 0)
        inputs: dict[str, Any] = {"input_ids": rows, "attention_mask": real}
        if pictures:
            inputs["pixel_values"] = self.pictures.preprocess(pictures)
        return inputs

    def _padded(self, rows: list[list[int]], value: int) -> list[list[int]]:
        """Rows of one length, on the tokenizer's `padding_side`."""
        longest = max(map(len, rows), default=0)
        fills = [[value] * (longest - len(row)) for row in rows]
        left = self.tokenizer.padding_side == "left"
        return [f + row if left else row + f for f, row in zip(fills, rows, strict=True)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options) -> "MetaMorphProcessor":
        """From a model folder, or one that `save_pretrained` wrote, here or on the Hub.

        Raises `UserError` for files that are missing or do not fit.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            given = {key: options[key] for key in FROM_HUB if key in options}
            name = str(pretrained_model_name_or_path)
            folder = Path(snapshot_download(name, allow_patterns=list(READ), **given))
        folder = folder / (options.get("subfolder") or "")
        written = folder / FILE
        settings = read_json(written) if written.exists() else _of_model(folder)
        settings = {name: value for name, value in settings.items() if name != "processor_class"}
        tokenizer = read_tokenizer(folder)
        tokenizer.padding_side = "left"  # as generation needs it
        return cls(tokenizer, **settings)

    def save_pretrained(self, save_directory, **options) -> None:
        """The tokenizer with its chat template, and processor_config.json."""
        self.tokenizer.save_pretrained(save_directory)
        settings = self.settings | {"processor_class": type(self).__name__}
        write_json(Path(save_directory) / FILE, settings)


def _of_model(folder: Path) -> dict[str, Any]:
    """The settings of a model folder, from its config.json and encoder/."""
    how = saved_preprocessing(folder / "encoder")
    return how | {"tokens_per_image": MetaMorphConfig.read(folder).tokens_per_image}


def _sample(messages: Sequence[dict]) -> Sample:
    """Messages of transformers as a conversation. Raises `UserError`."""
    said: list[Message] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"role: expected one of {', '.join(ROLES)}, got {shown(role)}")
        if not isinstance(content, str):
            content = tuple(map(_part, content or ()))
        said.append(Message(role, content))
    pictures = tuple(
        part for message in said for part in message.parts if isinstance(part, Image.Image)
    )
    return Sample("conversation", tuple(message.turn for message in said), pictures)


def _part(part: dict) -> str | Image.Image:
    """One part of a message: its text, or its picture, opened."""
    if part.get("type") == "text":
        return part["text"]
    picture = part.get("image", part.get("path"))
    if part.get("type") == "image" and isinstance(picture, Image.Image):
        return picture
    if part.get("type") == "image" and isinstance(picture, str | Path):
        try:
            return open_image(Path(picture), MAX_PIXELS)
        except SampleError as error:
            raise UserError(f"conversation: {error}") from error
    raise UserError(
        f"content: expected a text, or an image that is a PIL image or a path, got {shown(part)}"
    )


def _flat(images: Any) -> Iterator[Image.Image]:
    if isinstance(images, Image.Image):
        yield images
    else:
        for image in images or ():
            yield from _flat(image)
