"""MetaMorph: a language model that reads and predicts visual features among its text tokens."""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.config.keys import PromptImages
from metamorph.errors import UserError, shown, within
from metamorph.folders import check_result
from metamorph.model.encoder_files import check_encoder
from metamorph.model.encoders import open_vision
from metamorph.model.language import Attention, Llama
from metamorph.model.language_config import COMPUTED, LanguageConfig, check_types
from metamorph.model.unfilled import unfilled
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import (
    check_tensors,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_tokenizer,
)
from metamorph_kernels import Intervals, MLPGelu, interval_attention, linear_cosine_loss

MODEL_TYPE = "metamorph"
WRITTEN_BY_TRANSFORMERS = ("architectures", "dtype", "transformers_version")  # and nothing to us
LANGUAGE_PREFIX = "language."
LLAMA_PREFIXES = ("model.", "lm_head.")


@dataclass
class MetaMorphConfig:
    """Everything about the unified model that its weights do not say.

    `visual_width` is C; an image is grid x grid features. The hidden sizes of projector and
    vision head default to the language model's. Token ids come from the tokenizer; `added_ids` are
    of the tokens that a pretrained language model had not seen, the two image tokens at least.
    `prompt_images` says whether images in prompts are causal, as all else is, or see themselves
    whole; a folder from before there was a choice is causal.
    """

    language: LanguageConfig
    visual_width: int
    grid: int
    image_start_id: int
    image_end_id: int
    eos_ids: list[int]
    pad_id: int
    projector_hidden_size: int = COMPUTED
    vision_head_hidden_size: int = COMPUTED
    added_ids: list[int] = COMPUTED
    prompt_images: str = "causal"

    def __post_init__(self):
        if self.projector_hidden_size is COMPUTED:
            self.projector_hidden_size = self.language.hidden_size
        if self.vision_head_hidden_size is COMPUTED:
            self.vision_head_hidden_size = self.language.hidden_size
        if self.added_ids is COMPUTED:
            self.added_ids = sorted((self.image_start_id, self.image_end_id))
        check_types(self)
        for name in ("visual_width", "grid", "projector_hidden_size", "vision_head_hidden_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.prompt_images not in (choices := get_args(PromptImages)):
            raise UserError(
                f"prompt_images: expected {' or '.join(choices)}, got {shown(self.prompt_images)}"
            )
        if not self.eos_ids:
            raise UserError("eos_ids: expected at least one token id, got none")
        image_ids = (self.image_start_id, self.image_end_id)
        for token_id in (*image_ids, self.pad_id, *self.eos_ids, *self.added_ids):
            if not 0 <= token_id < self.language.vocab_size:
                raise UserError(
                    f"token id {token_id} is outside the vocabulary of {self.language.vocab_size}"
                )

    @property
    def tokens_per_image(self) -> int:
        return self.grid * self.grid

    @classmethod
    def read(cls, folder: Path) -> "MetaMorphConfig":
        """As `from_dict`, from the config.json of a folder, which every message names."""
        check_result(folder / "config.json", "model")
        data = read_json(folder / "config.json")
        with within(folder / "config.json"):
            return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict) -> "MetaMorphConfig":
        """Read what `to_dict` wrote.

        UserError for another model, a missing or an unknown key, or a value of a wrong type.
        """
        if data.get("model_type") != MODEL_TYPE:
            raise UserError(
                f"expected model_type {MODEL_TYPE!r}, got {shown(data.get('model_type'))}"
            )
        passed_over = ("model_type", *WRITTEN_BY_TRANSFORMERS)
        values = {key: value for key, value in data.items() if key not in passed_over}
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"unknown key {unknown[0]!r}")
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise UserError(f"the key {field.name!r} is missing")
        return cls(**values | {"language": LanguageConfig.from_dict(values["language"])})

    def to_dict(self) -> dict:
        language = self.language.to_dict()
        return {"model_type": MODEL_TYPE} | asdict(self) | {"language": language}


def interval_row(intervals: Intervals) -> Attention:
    """Attention of one packed row of T tokens, in all layers under the same intervals."""

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return interval_attention(q, k, v, intervals)

    return attention


class MetaMorph(nn.Module):
    """Language model, projector (C to H) and vision head (H to C), and maybe the encoder.

    Section 3 of MetaMorph (arXiv 2412.14164): features enter through the projector, and the
    state at each token predicts the next text token or the next feature.

    `row_attention(intervals)` makes the attention of `forward`; `fused_parts` may replace it.
    """

    row_attention = staticmethod(interval_row)

    def __init__(
        self,
        config: MetaMorphConfig,
        language: Llama | None = None,
        vision: VisionEncoder | None = None,
    ):
        super().__init__()
        if vision is not None:
            given, expected = (vision.grid, vision.width), (config.grid, config.visual_width)
            if given != expected:
                raise UserError(f"encoder: grid and width are {given}, expected {expected}")
        hidden, width = config.language.hidden_size, config.visual_width
        self.config = config
        self.language = Llama(config.language) if language is None else language
        self.projector = MLPGelu(width, config.projector_hidden_size, hidden)
        self.vision_head = MLPGelu(hidden, config.vision_head_hidden_size, width)
        self.vision = vision
        self.vision_folder: Path | None = None  # that `encoder` opens when first asked for
        self.folder: str | Path = "this model"  # where it was loaded from, for messages

    @property
    def encoder(self) -> VisionEncoder:
        """`vision`, for who has to have it; one that waits to be opened is opened now.

        Raises UserError if the model came without, or if the encoder's files do not fit.
        """
        if self.vision is None and self.vision_folder is not None:
            self.vision = self._open_vision(self.vision_folder)
        if self.vision is None:
            raise UserError(f"{self.folder} has no encoder/, it cannot read images")
        return self.vision

    def _open_vision(self, folder: Path) -> VisionEncoder:
        """The encoder in a folder, on this model's device."""
        vision = open_vision(folder, self.config.grid)
        return vision.to(self.projector.linear_1.weight.device)

    def embed(self, token_ids: Tensor, features: Tensor, visual_positions: Tensor) -> Tensor:
        """Input vectors [T, H]: token rows, with projected features at the visual positions.

        Args:
            token_ids: [T] ids; those at visual positions are not used but must be valid (pad).
            features: [images, tokens, C] unit vectors of any float dtype; zero images are fine.
            visual_positions: [Nv] distinct places for the features, images x tokens of them, in
                the order of `features`.

        Raises ValueError if the numbers of features and positions differ.
        """
        flat = features.flatten(0, 1)  # [Nv, C]
        if flat.shape[0] != visual_positions.shape[0]:
            raise ValueError(
                f"visual_positions: expected one for each of {flat.shape[0]} features, "
                f"got {visual_positions.shape[0]}"
            )
        embeddings = self.language.model.embed_tokens(token_ids)  # [T, H]
        projected = self.projector(flat.to(embeddings.dtype))  # [Nv, H]
        return embeddings.index_copy(0, visual_positions, projected.to(embeddings.dtype))

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        intervals: Intervals,
        features: Tensor,
        visual_positions: Tensor,
    ) -> Tensor:
        """States [T, H] of one packed row.

        Args:
            token_ids, features, visual_positions: as in `embed`.
            positions: [T], counting from 0 in each document.
            intervals: who may see whom, from `metamorph_kernels.key_intervals`.
        """
        embeddings = self.embed(token_ids, features, visual_positions)
        return self.language(embeddings, positions, self.row_attention(intervals))

    def predict_visual(self, states: Tensor) -> Tensor:
        """Unit vectors [N, C], fp32, that the states [N, H] predict for the next position."""
        return F.normalize(self.vision_head(states).float(), dim=-1)

    def visual_loss(self, states: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
        """1 - cosine between what states [N, H] predict and targets [N, C], summed over N.

        The same vision head as in `predict_visual`; for the backward its last layer keeps the
        gradient of the loss, not the prediction.
        Targets get no gradient; zero rows give 0. `reduction` is that of `linear_cosine_loss`.
        """
        first, last = self.vision_head.linear_1, self.vision_head.linear_2
        hidden = F.gelu(first(states))  # [N, F], the exact (erf) GELU
        return linear_cosine_loss(hidden, last.weight, last.bias, targets, reduction=reduction)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        open_vision: bool = True,
    ) -> "MetaMorph":
        """Load a folder that `save_pretrained` wrote, with its encoder if it has one.

        Weights keep the file's dtype unless `dtype` is given. With `open_vision` False, `vision`
        is None until `encoder` is first asked for, which then opens it in the file's dtype: for
        who may never be shown a picture. Its files are checked. UserError if anything does not fit.
        """
        folder = Path(folder)
        config = MetaMorphConfig.read(folder)
        with unfilled():
            model = cls(config)
        tensors = read_tensors(folder)
        expected = {file_name(name): tensor for name, tensor in model.state_dict().items()}
        check_tensors(expected, tensors, folder)
        model.load_state_dict(
            {parameter_name(key): value for key, value in tensors.items()}, assign=True
        )
        model.folder = folder
        if (folder / "encoder").exists():
            model.vision_folder = folder / "encoder"
            if open_vision:
                model.vision = model._open_vision(model.vision_folder)
            else:
                check_encoder(model.vision_folder)
        return model.to(device=device, dtype=dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        tokenizer=None,
        whole: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> None:
        """Write the unified folder: weights, config.json, tokenizer files and encoder/, and the
        generation_config.json by which transformers stops.

        The language model keeps its Hugging Face names, so that other tools find it. `whole` gives
        the values of a parameter that is more than a tensor here; it is asked for one at a time.
        """
        folder = Path(folder)
        tensors = {
            file_name(name): tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("vision.")
        }
        write_tensors(folder, tensors, whole=whole)
        if self.vision is not None:
            self.vision.save_pretrained(folder / "encoder")
        if tokenizer is not None:
            write_tokenizer(folder, tokenizer)
        write_json(folder / "generation_config.json", text_generation(self.config))
        write_json(folder / "config.json", self.config.to_dict())


def text_generation(config: MetaMorphConfig) -> dict:
    """The generation_config.json by which transformers writes text: where it stops, and no picture
    is begun, for it cannot go on with one."""
    return {
        "eos_token_id": config.eos_ids,
        "pad_token_id": config.pad_id,
        "suppress_tokens": [config.image_start_id],
    }


def file_name(name: str) -> str:
    """The name of a parameter in model.safetensors."""
    return name.removeprefix(LANGUAGE_PREFIX)


def parameter_name(stored: str) -> str:
    """The parameter whose name in model.safetensors is `stored`."""
    return LANGUAGE_PREFIX + stored if stored.startswith(LLAMA_PREFIXES) else stored
