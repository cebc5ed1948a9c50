"""Run configuration: one dataclass field is one YAML key is one command-line option.

A run file is YAML with the nesting of `RunConfig`; every key may be overridden by its dotted name::

    parser = argparse.ArgumentParser(prog="metamorph train")
    parser.add_argument("config", metavar="CONFIG")
    add_config_arguments(parser)
    namespace, unknown = parser.parse_known_args(arguments)
    config = load_config(namespace.config, overrides_from_namespace(namespace, unknown))

    metamorph train configs/toy/align.yaml --training.steps 200 --data.kinds '{question: 1.0}'

What a key means, which values it takes and within which limits stands once, beside its default.
Whatever does not fit raises `UserError` naming the file, the key, what it got and what it needs.
"""

import argparse
import dataclasses
import difflib
import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metamorph.errors import UserError
from metamorph.strict_yaml import parse_text, read_yaml

STAGES = ("language", "align", "instruct", "decoder")
PRECISIONS = ("fp32", "bf16", "fp8")
OPTIMIZERS = ("torch", "adamw8bit", "apex")
FP8_BACKENDS = ("torchao", "transformer_engine", "native")
SOURCES = ("toy_scenes", "jsonl", "webdataset", "parquet", "mixture")
FAMILIES = ("conversations", "captions", "edits", "boxes", "video_questions", "video_frames")
NUMBERS = dict[str, float]
NAMES = dict[str, str]
KINDS = {  # type: its name in --help, and in words
    str: ("TEXT", "text (quote it in YAML)"),
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    bool: ("BOOL", "true or false"),
    NUMBERS: ("MAPPING", "a mapping of names to numbers, such as {question: 1.0}"),
    NAMES: ("MAPPING", "a mapping of names to names, such as {caption: TEXT}"),
}
SHARE = {"minimum": 0, "maximum": 1}
LIMITS = {  # limit: in words, and what holds between a value and it
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def option(help: str, default: Any = MISSING, **limits: Any) -> Any:
    """A config field with its help and limits: choices, minimum, above, maximum or below."""
    metadata = {"help": help, **limits}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """What the model starts from: a MetaMorph folder, or a language and a vision folder."""

    folder: str = option("MetaMorph folder to start from", "")
    language: str = option("Hugging Face Llama folder to start from", "")
    vision: str = option("Hugging Face SigLIP folder, the frozen encoder", "")
    grid: int = option("an image becomes grid x grid visual tokens", 8, minimum=1)
    attention: str = option(
        "who computes attention", "interval", choices=("interval", "flash_attn", "xformers")
    )
    rms_norm: str = option("who computes RMSNorm", "torch", choices=("torch", "apex", "liger"))
    rotary: str = option("who rotates queries and keys", "torch", choices=("torch", "liger"))
    swiglu: str = option("who computes SwiGLU", "torch", choices=("torch", "liger"))


@dataclass
class SourceConfig:
    """One source of samples: its format, its family and where it lies."""

    source: str = option("kind of source", "jsonl", choices=SOURCES)
    family: str = option(
        "what conversation a record stands for (all but toy_scenes), see docs/data.md",
        "conversations",
        choices=FAMILIES,
    )
    path: str = option("file of the samples; webdataset and parquet: or a folder, or *.tar", "")
    image_root: str = option(
        "folder that image and video paths start from, empty for the folder of the file (jsonl)", ""
    )
    fields: NAMES = option("fields of your records under other names: {caption: TEXT}", {})
    frames_per_second: float = option("frames to take of a second of video", 1.0, above=0)
    max_frames: int = option("most frames of a video", 45, minimum=2)
    kinds: NUMBERS = option("weight of each sample kind (toy_scenes)", {}, minimum=0)
    samples: int = option("samples in an epoch, 0 for endless (toy_scenes)", 0, minimum=0)


@dataclass
class PartConfig(SourceConfig):
    """One part of a mixture file; its paths start from the folder of that file."""

    source: str = option("kind of source", "jsonl", choices=SOURCES[:-1])
    weight: float = option("relative share, 0 for the number of samples", 0.0, minimum=0)


@dataclass
class DataConfig(SourceConfig):
    """Where samples come from and how they are packed."""

    row_length: int = option("tokens in a packed row", 4096, minimum=2)
    max_pixels: int = option("refuse images with more pixels than this", 50_000_000, minimum=1)
    shuffle: bool = option("draw samples in an order that depends on the seed and epoch", True)
    skip_limit: float = option("stop if a larger share of samples is unusable", 0.2, **SHARE)
    features: str = option("folder of cached features, see metamorph encode", "")
    workers: int = option("processes that prepare samples ahead, 0 for none", 0, minimum=0)


@dataclass
class TrainingConfig:
    """Optimisation, precision, checkpoints and logging."""

    steps: int = option("optimizer steps", 1000, minimum=1)
    rows_per_step: int = option(
        "packed rows in an optimizer step, over all processes", 1, minimum=1
    )
    learning_rate: float = option("peak learning rate", 6.93e-5, above=0)
    warmup_ratio: float = option("share of the steps that warms up", 0.03, **SHARE)
    weight_decay: float = option("AdamW weight decay", 0.0, minimum=0)
    beta1: float = option("AdamW decay of the first moment", 0.9, minimum=0, below=1)
    beta2: float = option("AdamW decay of the second moment", 0.999, minimum=0, below=1)
    gradient_clip: float = option("largest gradient norm", 1.0, above=0)
    visual_coefficient: float = option("weight of the visual loss beside text", 1.0, minimum=0)
    precision: str = option("arithmetic of the step", "fp32", choices=PRECISIONS)
    fp8_backend: str = option(
        "who computes float8 products (precision fp8)",
        "torchao",
        choices=FP8_BACKENDS,
    )
    optimizer: str = option("who computes AdamW", "torch", choices=OPTIMIZERS)
    weights: str = option(
        "dtype of the weights that the optimizer moves; bf16 needs optimizer adamw8bit",
        "fp32",
        choices=("fp32", "bf16"),
    )
    activation_checkpointing: str = option(
        "what a block computes again in the backward instead of keeping it",
        "none",
        choices=("none", "selective", "full"),
    )
    compile: bool = option("compile each block of the language model (GPU)", False)
    lora_rank: int = option(
        "rank of adapters on the language model's linear layers, 0 to train it whole", 0, minimum=0
    )
    lora_alpha: float = option("an adapter counts lora_alpha / lora_rank", 16.0, above=0)
    max_bad_steps: int = option(
        "stop after this many steps in a row whose loss or gradient is not finite", 10, minimum=1
    )
    checkpoint_every: int = option("steps between checkpoints", 500, minimum=1)
    keep_checkpoints: int = option("newest checkpoints to keep", 2, minimum=1)
    log_every: int = option("steps between lines of metrics.jsonl", 10, minimum=1)


@dataclass
class ParallelConfig:
    """How a model is spread over the processes that torchrun started."""

    shard: int = option(
        "processes that share one copy of the weights, 0 for all of them", 0, minimum=0
    )
    cpu_offload: bool = option("keep weights, gradients and optimizer in host memory", False)


@dataclass
class DecoderConfig:
    """The diffusion decoder: its base, adapter, training and sampling."""

    base: str = option("diffusers folder with unet/, vae/ and scheduler/", "")
    batch_size: int = option("images in an optimizer step", 32, minimum=1)
    condition_dropout: float = option("share of images trained without condition", 0.7, **SHARE)
    guidance_scale: float = option("classifier-free guidance when sampling", 3.0, minimum=0)
    sampling_steps: int = option("denoising steps of a drawing", 20, minimum=1)
    adapter_hidden: int = option("width of the adapter's hidden layer", 2048, minimum=1)
    condition_length: int = option("zero-pad conditions to this many tokens", 0, minimum=0)


@dataclass
class MonitorConfig:
    """What a run shows of itself beside the console and metrics.jsonl."""

    tensorboard: bool = option("write event files for TensorBoard to the run folder", False)
    wandb: bool = option("report to Weights & Biases", False)
    samples_every: int = option(
        "steps between sheets of drawings, 0 for none (instruct)", 0, minimum=0
    )
    samples: int = option("drawings on a sheet", 6, minimum=1)
    decoder: str = option("folder of a trained decoder that draws them", "")
    profile: int = option("trace three steps from this one on, 0 for none", 0, minimum=0)


@dataclass
class RunConfig:
    """One training run, as its YAML file says it."""

    stage: str = option("what to train", choices=STAGES)
    output: str = option("run folder to write", filled=True)
    seed: int = option("seed of weights, data order and noise", 0, minimum=0, maximum=2**32 - 1)
    resume: bool = option("go on from the newest checkpoint in the run folder", False)
    overwrite: bool = option("replace a run folder that exists", False)
    device: str = option("auto, cpu, cuda or cuda:N", "auto", filled=True)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML run file, then apply `overrides` {dotted key: value, or its text}."""
    values = _flatten(read_yaml(Path(path)), str(path))
    origin = dict.fromkeys(values, str(path))
    fields = dict(_leaves(RunConfig))
    for key, value in (overrides or {}).items():
        if key in fields and isinstance(value, str) and fields[key].type is not str:
            value = parse_text(value)
        values[key], origin[key] = value, "override"
    for key in values:
        if key not in fields:
            raise UserError(f"{origin[key]}: unknown key '{key}'; the nearest is '{nearest(key)}'")
    for key, entry in fields.items():
        if key in values:
            values[key] = _convert(key, entry, values[key], origin[key])
        elif _default(entry) is MISSING:
            raise UserError(f"{path}: key '{key}' is missing; it needs {_needs(entry)}")
    return _build(RunConfig, values)


def read_section(config_class: type, values: Any, origin: str) -> Any:
    """A flat config dataclass from a mapping, checked as `load_config` checks. `origin`: where
    the mapping stands, for messages."""
    fields = dict(_leaves(config_class))
    values = {str(key): value for key, value in _mapping(values, "it", origin).items()}
    for key in values:
        if key not in fields:
            closest = difflib.get_close_matches(key, fields, n=1, cutoff=0)[0]
            raise UserError(f"{origin}: unknown key '{key}'; the nearest is '{closest}'")
    return config_class(**{k: _convert(k, fields[k], v, origin) for k, v in values.items()})


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML; `load_config` reads it back equal."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write `to_yaml(config)` to `path`."""
    Path(path).write_text(to_yaml(config), encoding="utf-8")


def iter_fields(config_class: type) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted key, type, default, help) of every key; a required key has default MISSING."""
    for key, entry in _leaves(config_class):
        yield key, entry.type, _default(entry), entry.metadata["help"]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--section.key VALUE` for every key of `RunConfig`, a group for each section.

    Abbreviations are switched off: a shortened key would change its meaning when keys are added.
    """
    parser.allow_abbrev = False
    groups: dict[str, Any] = {}
    for key, entry in _leaves(RunConfig):
        section = key.rpartition(".")[0] or "run"
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} options")
        default = _default(entry)
        shown = "required" if default is MISSING else f"default: {json.dumps(default)}"
        choices = entry.metadata.get("choices", ())
        groups[section].add_argument(
            f"--{key}",
            dest=key,
            default=argparse.SUPPRESS,
            metavar="|".join(choices) or KINDS[entry.type][0],
            help=f"{entry.metadata['help']} ({shown})".replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if entry.type is bool else {}),
        )


def overrides_from_namespace(
    namespace: argparse.Namespace, unknown: Sequence[str] = ()
) -> dict[str, str]:
    """The config options given on the command line; `unknown` is from `parse_known_args`."""
    for argument in unknown:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0]
            raise UserError(f"unknown option '--{name}'; the nearest is '--{nearest(name)}'")
    if unknown:
        raise UserError(f"unexpected argument '{unknown[0]}'")
    given = vars(namespace)
    return {key: given[key] for key, _ in _leaves(RunConfig) if key in given}


def nearest(key: str) -> str:
    """The key of `RunConfig` that `key` most likely stands for."""
    keys = [name for name, _ in _leaves(RunConfig) if name != key]
    sections = {name.partition(".")[0] for name in keys} - {key}
    leaf = key.rpartition(".")[2]
    misplaced = [name for name in keys if name.rpartition(".")[2] == leaf]
    candidates = misplaced or [*keys, *sorted(sections)]
    return difflib.get_close_matches(key, candidates, n=1, cutoff=0)[0]


def _leaves(config_class: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(entry.type):
            yield from _leaves(entry.type, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry


def _default(entry: dataclasses.Field) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _flatten(mapping: Any, origin: str) -> dict[str, Any]:
    """Nested YAML as {dotted key: value}; an empty section is a section left at its defaults."""
    sections = {key.partition(".")[0] for key, _ in _leaves(RunConfig) if "." in key}
    values = {}
    for name, value in _mapping(mapping, "the run file", origin).items():
        if "." in str(name):
            raise UserError(f"{origin}: key '{name}' has a dot; in YAML, nest keys in sections")
        if name in sections:
            section = _mapping(value, f"section '{name}'", origin)
            values |= {f"{name}.{key}": item for key, item in section.items()}
        else:
            values[str(name)] = value
    return values


def _mapping(value: Any, what: str, origin: str) -> dict:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{origin}: {what} got {value!r}; it needs 'key: value' lines")
    return value or {}


def _convert(key: str, entry: dataclasses.Field, value: Any, origin: str) -> Any:
    converted = _coerce(entry.type, value)
    items = converted.values() if isinstance(converted, dict) else [converted]
    if converted is None or not all(_within(entry.metadata, item) for item in items):
        raise UserError(f"{origin}: key '{key}' got {value!r}; it needs {_needs(entry)}")
    return converted


def _coerce(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None where it is something else."""
    if kind in (NUMBERS, NAMES):
        if not isinstance(value, Mapping):
            return None
        _, item_kind = kind.__args__
        items = {name: _coerce(item_kind, item) for name, item in value.items()}
        named = all(isinstance(name, str) for name in items)
        return items if named and None not in items.values() else None
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is not float:
        return value if isinstance(value, kind) else None
    try:  # YAML 1.1 reads 1e-4, which lacks a point, as text.
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _within(limits: Mapping[str, Any], value: Any) -> bool:
    if "choices" in limits:
        return value in limits["choices"]
    if "filled" in limits:
        return bool(value.strip())
    return all(ok(value, limits[name]) for name, (_, ok) in LIMITS.items() if name in limits)


def _needs(entry: dataclasses.Field) -> str:
    limits = entry.metadata
    if "choices" in limits:
        return "one of " + ", ".join(limits["choices"])
    bounds = [f"{word} {limits[name]}" for name, (word, _) in LIMITS.items() if name in limits]
    filled = ["not empty"] if "filled" in limits else []
    return ", ".join([KINDS[entry.type][1], *filled, *bounds])


def _build(config_class: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {}
    for entry in dataclasses.fields(config_class):
        key = prefix + entry.name
        if dataclasses.is_dataclass(entry.type):
            arguments[entry.name] = _build(entry.type, values, f"{key}.")
        elif key in values:
            arguments[entry.name] = values[key]
    return config_class(**arguments)
