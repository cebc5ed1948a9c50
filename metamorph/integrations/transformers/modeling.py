"""MetaMorph as a model of transformers: text and pictures in, text out."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from metamorph.integrations.transformers.configuration import FROM_HUB, MetaMorphPretrainedConfig
from metamorph.model.encoders import open_vision
from metamorph.model.unified import text_generation
from metamorph.model.vision import VisionEncoder
from metamorph_kernels import MLPGelu

ENCODER = "encoder"  # the folder beside the weights
IGNORED = -100  # of labels, as everywhere in transformers


class MetaMorphForCausalLM(PreTrainedModel, GenerationMixin):
    """The folder of a `MetaMorph` on transformers' own Llama, Mistral or Qwen, with its caches and
    attentions.

    `vision` is the encoder in encoder/, or None. `vision_head`, by which a MetaMorph predicts
    pictures, is kept and saved; `generate` writes text alone.
    """

    config: MetaMorphPretrainedConfig
    config_class = MetaMorphPretrainedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    input_modalities = ("image", "text")

    def __init__(self, config: MetaMorphPretrainedConfig):
        super().__init__(config)
        own, hidden = config.checked(), config.language.hidden_size
        self.model = AutoModel.from_config(config.language)
        self.lm_head = nn.Linear(hidden, config.language.vocab_size, bias=False)
        self.projector = MLPGelu(own.visual_width, own.projector_hidden_size, hidden)
        self.vision_head = MLPGelu(hidden, own.vision_head_hidden_size, own.visual_width)
        self.vision: VisionEncoder | None = None
        self.tokens_per_image, self.prompt_images = own.tokens_per_image, own.prompt_images
        self.post_init()
        self.generation_config = GenerationConfig(**text_generation(own))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], and with `labels` the loss of text.

        Args:
            input_ids: [B, T]. An image is `<image_start>`, that id again for each of its tokens,
                and `<image_end>`, as the processor writes it.
            pixel_values: [images, 3, S, S], all images of the batch, row after row.
            attention_mask: [B, T], 0 for padding, with what the cache holds before them.
            position_ids, past_key_values: as LlamaModel and its like take them.
            inputs_embeds: [B, T, H] in place of `input_ids` and pictures.
            labels: [B, T], -100 where nothing is learned; nor is it within an image.
            logits_to_keep: how many of the last logits to compute, 0 for all.
            more: what else LlamaModel takes, such as `use_cache`.

        Raises ValueError where pictures and their places differ in number, and for pictures that
        this model cannot read.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids: expected these or inputs_embeds, not both or neither")
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)  # [B, T, H]
        if input_ids is not None and labels is not None:
            labels = labels.masked_fill(self.visual_places(input_ids).to(labels.device), IGNORED)
        if pixel_values is not None:
            inputs_embeds = self._with_images(input_ids, inputs_embeds, pixel_values)
        out = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **more,
        )
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.language.vocab_size, **more)
        return CausalLMOutputWithPast(
            loss, logits, out.past_key_values, out.hidden_states, out.attentions
        )

    def visual_places(self, input_ids: Tensor) -> Tensor:
        """bool [B, T]: where images have their tokens, which repeat the id that begins them."""
        begins = input_ids == self.config.image_start_id
        places = torch.zeros_like(begins)
        places[:, 1:] = begins[:, 1:] & begins[:, :-1]
        return places

    def _with_images(
        self, input_ids: Tensor | None, inputs_embeds: Tensor, pixel_values: Tensor
    ) -> Tensor:
        """`inputs_embeds` [B, T, H] with projected features at the places of images."""
        if input_ids is None:
            raise ValueError("pixel_values: their places are in input_ids, which are not given")
        if self.prompt_images != "causal":
            raise ValueError(
                f"pixel_values: this model was trained with {self.prompt_images} images in prompts,"
                f" which only metamorph itself computes"
            )
        if self.vision is None:
            raise ValueError("pixel_values: this model came without encoder/, it reads no pictures")
        places = self.visual_places(input_ids).to(inputs_embeds.device)
        expected = len(pixel_values) * self.tokens_per_image
        if int(places.sum()) != expected:
            raise ValueError(
                f"pixel_values: {len(pixel_values)} images have {expected} tokens, but input_ids "
                f"has places for {int(places.sum())}"
            )
        features = self.vision(pixel_values.to(self.vision.device))  # [images, tokens, C]
        weight = self.projector.linear_1.weight
        projected = self.projector(features.flatten(0, 1).to(weight.device, inputs_embeds.dtype))
        projected = projected.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(places[..., None], projected)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, pixel_values=None, **kwargs
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, **kwargs
        )
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            inputs["pixel_values"] = pixel_values  # later they are in the cache
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, *, input_ids=None, **more):
        """Beams of a row have its images in its order."""
        pixel_values = more.pop("pixel_values", None)
        if pixel_values is not None and input_ids is not None:
            images = self.visual_places(input_ids).sum(1) // self.tokens_per_image
            rows = pixel_values.split(images.tolist())
            pixel_values = torch.cat([row.repeat(expand_size, 1, 1, 1) for row in rows])
        input_ids, more = super()._expand_inputs_for_generation(
            expand_size, input_ids=input_ids, **more
        )
        return input_ids, more | {"pixel_values": pixel_values}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *arguments, **options):
        """As of every model of transformers; then the encoder, from encoder/ beside the weights.

        It keeps the dtype of its file unless `dtype` names one.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.generation_config.eos_token_id is None:  # of a folder without the file
            model.generation_config = GenerationConfig(**text_generation(model.config.checked()))
        folder = _encoder_folder(pretrained_model_name_or_path, options)
        if folder is not None and folder.exists():
            dtype = options.get("dtype", options.get("torch_dtype"))
            dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
            vision = open_vision(folder, model.config.grid)
            model.vision = vision.to(model.projector.linear_1.weight.device, dtype)
        return loaded

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **options,
    ) -> None:
        """A folder that transformers and metamorph open: the encoder goes to encoder/."""
        if options.pop("push_to_hub", False):  # it would be sent before the encoder is written
            raise ValueError("save_pretrained: call push_to_hub in place of push_to_hub=True")
        tensors = self.state_dict() if state_dict is None else state_dict
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision.")}
        super().save_pretrained(save_directory, is_main_process, own, **options)
        if self.vision is not None and is_main_process:
            self.vision.save_pretrained(Path(save_directory) / ENCODER)


def _encoder_folder(name, options: dict[str, Any]) -> Path | None:
    """Where the encoder of a folder, or of a repository on the Hub, lies on this machine."""
    if name is None:
        return None
    inside = Path(options.get("subfolder") or "") / ENCODER
    if Path(name).is_dir():
        return Path(name) / inside
    given = {key: options[key] for key in FROM_HUB if key in options}
    return Path(snapshot_download(name, allow_patterns=f"{inside.as_posix()}/*", **given)) / inside
