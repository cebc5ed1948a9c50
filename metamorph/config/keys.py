"""What a run can be told: one dataclass field is one YAML key is one command-line option.

What a key means, which values it takes and within which limits stands once, beside its default.
A `Literal` type names the values of a key that takes one of a few. How files and options are read
and checked: `reading`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from metamorph.config.data_keys import DataConfig
from metamorph.config.decoder_keys import DecoderConfig
from metamorph.config.options import (
    ADAPTED_STAGES,
    DRAWING_STAGES,
    INSTRUCT_STAGE,
    LANGUAGE_STAGES,
    NAME_LIST,
    PICTURE_STAGES,
    SHARE,
    option,
)

Stage = Literal["language", "align", "instruct", "decoder", "distill"]
Precision = Literal["fp32", "bf16", "fp8"]
Fp8Backend = Literal["torchao", "transformer_engine", "native"]
Fp8Recipe = Literal[
    "rowwise",
    "rowwise_with_gw_hp",
    "tensorwise",
    "Float8CurrentScaling",
    "Float8BlockScaling",
    "MXFP8BlockScaling",
    "NVFP4BlockScaling",
]
# Of generation, which has no run file:
PrefillAttention = Literal["auto", "fp8"]
DecoderPrecision = Literal["fp32", "bf16"]
DecoderAttention = Literal["flash_attn", "xformers"]
DecoderGroupNorm = Literal["apex"]
Recomputation = Literal["none", "selective", "full"]
VisualLoss = Literal["cosine", "l1"]
PromptImages = Literal["causal", "bidirectional"]
FeatureDtype = Literal["bf16", "fp16", "int8", "fp32"]
ExportFormat = Literal["hf", "official"]
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # linear layers of a block
MAX_SEED = 2**32 - 1


@dataclass
class ModelConfig:
    """What the model starts from: a MetaMorph folder, or a language and a vision folder."""

    folder: str = option("MetaMorph folder to start from", "")
    language: str = option(
        "Hugging Face folder to start from: a Llama, Mistral, Qwen2 or Qwen3", "", **LANGUAGE_STAGES
    )
    vision: str = option(
        "folder of the frozen encoder: SigLIP, SigLIP 2, CLIP, DINOv2, DINOv3, EfficientNet-Lite",
        "",
    )
    grid: int = option("an image becomes grid x grid visual tokens", 8, minimum=1)
    chat_template: str = option(
        "chat format: a file with a jinja template, or llama3; empty for the tokenizer's own",
        "",
        **LANGUAGE_STAGES,
    )
    prompt_images: PromptImages = option(
        "what a token of an image in a prompt sees of that image: those before it, or all of them; "
        "by default as model.folder was trained, and causal for a new model",
        None,
        **PICTURE_STAGES,
    )
    attention: Literal["interval", "flash_attn", "flash_attn_4", "varlen", "xformers"] = option(
        "who computes attention", "interval", **LANGUAGE_STAGES
    )
    rms_norm: Literal["torch", "apex", "liger"] = option(
        "who computes RMSNorm", "torch", **LANGUAGE_STAGES
    )
    rotary: Literal["torch", "liger"] = option(
        "who rotates queries and keys", "torch", **LANGUAGE_STAGES
    )
    swiglu: Literal["torch", "liger"] = option("who computes SwiGLU", "torch", **LANGUAGE_STAGES)


@dataclass
class TrainingConfig:
    """Optimisation, precision, checkpoints and logging."""

    steps: int = option("optimizer steps; 1000 unless epochs is given", None, minimum=1)
    epochs: float = option("passes over the data, in place of steps", None, above=0)
    rows_per_step: int = option(
        "packed rows in an optimizer step, over all processes", 1, minimum=1, **LANGUAGE_STAGES
    )
    learning_rate: float = option("peak learning rate", 6.93e-5, above=0)
    schedule: Literal["cosine", "logarithmic"] = option(
        "the rate warms up in a line and falls along a cosine, or warms up by the logarithm of the "
        "step and falls in a line; to 0",
        "cosine",
    )
    warmup_ratio: float = option("share of the run that warms up", 0.03, **SHARE)
    warmup_steps: int = option("steps that warm up, in place of warmup_ratio", None, minimum=1)
    weight_decay: float = option("AdamW weight decay", 0.0, minimum=0)
    beta1: float = option("AdamW decay of the first moment", 0.9, minimum=0, below=1)
    beta2: float = option("AdamW decay of the second moment", 0.999, minimum=0, below=1)
    gradient_clip: float = option("largest gradient norm, 0 not to clip", 1.0, minimum=0)
    projector_rate_factor: float = option(
        "the projector's learning rate is this times learning_rate",
        1.0,
        minimum=0,
        **PICTURE_STAGES,
    )
    vision_head_rate_factor: float = option(
        "the vision head's learning rate is this times learning_rate",
        1.0,
        minimum=0,
        **INSTRUCT_STAGE,
    )
    language_rate_factor: float = option(
        "the language model's learning rate, token rows included, is this times learning_rate",
        1.0,
        minimum=0,
        **PICTURE_STAGES,
    )
    visual_coefficient: float = option(
        "weight of the visual loss beside text: 1 in stage instruct; in others 0, and no other",
        None,
        minimum=0,
        **LANGUAGE_STAGES,
    )
    visual_loss: VisualLoss = option(
        "what a prediction is from its feature: 1 - cosine, or the mean absolute difference (l1)",
        "cosine",
        **INSTRUCT_STAGE,
    )
    visual_input_dropout: float = option(
        "share of the predicted pictures whose own tokens a step hides from the model, so that "
        "each token is predicted from the words alone",
        0.0,
        minimum=0,
        below=1,
        **INSTRUCT_STAGE,
    )
    precision: Precision = option("arithmetic of the step", "fp32")
    fp8_backend: Fp8Backend = option(
        "who computes float8 products (precision fp8)", "torchao", **LANGUAGE_STAGES
    )
    fp8_recipe: Fp8Recipe = option(
        "what shares a scale in fp8, by fp8_backend's own name for it; by default rowwise of "
        "torchao, Float8CurrentScaling of transformer_engine",
        None,
        **LANGUAGE_STAGES,
    )
    fp8_all_gather: bool = option(
        "gather sharded weights in 8 bits (torchrun; torchao's recipe tensorwise)",
        False,
        **LANGUAGE_STAGES,
    )
    optimizer: Literal["torch", "adamw8bit", "apex", "transformer_engine"] = option(
        "who computes AdamW", "torch"
    )
    weights: Literal["fp32", "bf16"] = option(
        "dtype of the weights that the optimizer moves; bf16 needs optimizer adamw8bit",
        "fp32",
        **LANGUAGE_STAGES,
    )
    activation_checkpointing: Recomputation = option(
        "what a block computes again in the backward instead of keeping it (decoder: none or full)",
        "none",
    )
    compile: bool = option("compile each block of the language model or the UNet (GPU)", False)
    lora_rank: int = option(
        "rank of adapters on the linear layers of the language model, or of the UNet's attention, "
        "0 to train it whole",
        0,
        minimum=0,
        **ADAPTED_STAGES,
    )
    lora_alpha: float = option(
        "an adapter counts lora_alpha / lora_rank", 16.0, above=0, **ADAPTED_STAGES
    )
    lora_targets: NAME_LIST = option(
        "which linear layers of a block get adapters (decoder: q, k, v, o)",
        list(LORA_TARGETS),
        names=LORA_TARGETS,
        **ADAPTED_STAGES,
    )
    lora_dropout: float = option(
        "share of an adapter's inputs that a step leaves out", 0.0, minimum=0, below=1,
        **ADAPTED_STAGES,
    )  # fmt: skip
    validate_every: int = option(
        "steps between looks at data.validation; there is one at the end, too",
        500,
        minimum=1,
    )
    validation_rows: int = option(
        "packed rows of data.validation to look at, over all processes, 0 for all of it",
        0,
        minimum=0,
        **LANGUAGE_STAGES,
    )
    validation_samples: int = option(
        "samples of data.validation to look at, over all processes, 0 for all of it",
        0,
        minimum=0,
        **DRAWING_STAGES,
    )
    max_bad_steps: int = option(
        "stop after this many steps in a row whose loss or gradient is not finite", 10, minimum=1
    )
    checkpoint_every: int = option("steps between checkpoints", 500, minimum=1)
    on_full_disk: Literal["stop", "retry"] = option(
        "what a run does that cannot write: end, or go on and try again at the next save", "stop"
    )
    keep_checkpoints: int = option("newest checkpoints to keep", 2, minimum=1)
    log_every: int = option("steps between lines of metrics.jsonl", 10, minimum=1)


@dataclass
class ParallelConfig:
    """How a model is spread over the processes that torchrun started."""

    shard: int = option(
        "processes that share one copy of the weights, 0 for all of them", 0, minimum=0
    )
    cpu_offload: bool = option(
        "keep weights, gradients and optimizer in host memory", False, **LANGUAGE_STAGES
    )
    gpus: int = option(
        "GPUs that the file is cut for, which a dry run plans for; 0 to open the model instead",
        0,
        minimum=0,
    )


@dataclass
class MonitorConfig:
    """What a run shows of itself beside the console and metrics.jsonl."""

    tensorboard: bool = option("write event files for TensorBoard to the run folder", False)
    wandb: bool = option("report to Weights & Biases", False)
    trackio: bool = option("report to trackio, which keeps everything on this machine", False)
    samples_every: int = option("steps between sheets of drawings, 0 for none", 0, minimum=0)
    samples: int = option("drawings on a sheet", 6, minimum=1)
    decoder: str = option("folder of a trained decoder that draws them", "", **LANGUAGE_STAGES)
    profile: int = option("trace three steps from this one on, 0 for none", 0, minimum=0)


@dataclass
class RunConfig:
    """One training run, as its YAML file says it."""

    stage: Stage = option("what to train")
    output: str = option("run folder to write", filled=True)
    seed: int = option("seed of weights, data order and noise", 0, minimum=0, maximum=MAX_SEED)
    resume: bool = option("go on from the newest checkpoint in the run folder", False)
    overwrite: bool = option("replace a run folder that exists", False)
    device: str = option("auto, cpu, cuda or cuda:N", "auto", filled=True)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self):
        """Chooses what depends on other keys and was not said."""
        if self.training.steps is None and self.training.epochs is None:
            self.training = replace(self.training, steps=1000)
        if self.training.visual_coefficient is None and not self.trains_decoder:
            chosen = 1.0 if self.stage == "instruct" else 0.0
            self.training = replace(self.training, visual_coefficient=chosen)
        decoder, is_student = self.decoder, self.stage == "distill"
        if self.stage == "decoder" and decoder.feature_noise is None:
            chosen = 0.5 if decoder.kind == "rae" else 0.0
            self.decoder = decoder = replace(decoder, feature_noise=chosen)
        if self.trains_decoder and decoder.kind == "diffusion":
            if decoder.sampling_steps is None:
                decoder = replace(decoder, sampling_steps=4 if is_student else 20)
            if decoder.guidance_scale is None and not is_student:
                decoder = replace(decoder, guidance_scale=3.0)
            self.decoder = decoder

    @property
    def trains_decoder(self) -> bool:
        """Whether the stage trains a decoder and no language model."""
        return self.stage in ("decoder", "distill")
