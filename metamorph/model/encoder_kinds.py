"""The kinds of encoders that are served, and what is known of each without its network."""

from dataclasses import dataclass

from PIL import Image

from metamorph.errors import UserError, shown

HALF = (0.5, 0.5, 0.5)
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


@dataclass(frozen=True)
class EncoderKind:
    """What the files of an encoder say, and what they leave unsaid.

    Attributes:
        model_types: of a config.json; where there are two, of a model with text and of its vision
            half.
        mean, std, resample: of preprocessing, where no preprocessor_config.json says it.
        is_any_size: it takes squares of any size, and preprocessor_config.json says which.
        sizes: of config.json, by which a square is divided into patches.
        settings: of config.json that features depend on and weights do not say.
        never_run: how the names of weights begin that decide no feature.
        file_prefix: of the names of its weights in a file, before those in its network.
        since: the first release of transformers whose network has its parts under the names that we
            read, major and minor.
    """

    name: str
    model_types: tuple[str, ...]
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    resample: Image.Resampling = BICUBIC
    is_any_size: bool = False
    sizes: tuple[str, str] = ("image_size", "patch_size")
    settings: tuple[str, ...] = ("num_attention_heads", "hidden_act", "layer_norm_eps")
    never_run: tuple[str, ...] = ()
    file_prefix: str = ""
    since: tuple[int, int] = (5, 0)


# The means and deviations of the colours that CLIP and that networks of ImageNet learned with.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# SigLIP 2 at a fixed resolution is a SigLIP in its files.
SIGLIP = EncoderKind(
    "SigLIP",
    ("siglip", "siglip_vision_model"),
    never_run=("post_layernorm.", "head."),
    file_prefix="vision_model.",
)
SIGLIP2_NAFLEX = EncoderKind(
    "SigLIP 2 NaFlex",
    ("siglip2", "siglip2_vision_model"),
    resample=BILINEAR,
    is_any_size=True,
    sizes=("num_patches", "patch_size"),
    never_run=("post_layernorm.", "head."),
    file_prefix="vision_model.",
)
CLIP = EncoderKind(
    "CLIP",
    ("clip", "clip_vision_model"),
    CLIP_MEAN,
    CLIP_STD,
    never_run=("post_layernorm.",),
    file_prefix="vision_model.",
)
DINOV2 = EncoderKind(
    "DINOv2",
    ("dinov2",),
    IMAGENET_MEAN,
    IMAGENET_STD,
    is_any_size=True,
    never_run=("embeddings.mask_token",),
    since=(5, 18),
)
DINOV2_REGISTERS = EncoderKind(
    "DINOv2 with registers",
    ("dinov2_with_registers",),
    IMAGENET_MEAN,
    IMAGENET_STD,
    is_any_size=True,
    never_run=("embeddings.mask_token",),
    since=(5, 18),
)
DINOV3 = EncoderKind(
    "DINOv3",
    ("dinov3_vit",),
    IMAGENET_MEAN,
    IMAGENET_STD,
    BILINEAR,
    is_any_size=True,
    settings=("num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta"),
    never_run=("embeddings.mask_token",),
    since=(5, 4),
)
EFFICIENTNET_LITE = EncoderKind("EfficientNet-Lite", ("efficientnet_lite",))

KINDS = (
    SIGLIP,
    SIGLIP2_NAFLEX,
    CLIP,
    DINOV2,
    DINOV2_REGISTERS,
    DINOV3,
    EFFICIENTNET_LITE,
)


def kind_of(config: dict) -> EncoderKind:
    """The kind whose config.json this is. Raises `UserError` for what is no encoder that is
    served."""
    written = config.get("model_type")
    for kind in KINDS:
        if written in kind.model_types:
            return kind
    served = [model_type for kind in KINDS for model_type in kind.model_types]
    raise UserError(
        f"expected an encoder, of model_type {', '.join(served[:-1])} or {served[-1]}, "
        f"got {shown(written)}"
    )
