"""Settings of the language model, read from and written to a Hugging Face config.json."""

import sys
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from metamorph.errors import UserError, shown, within
from metamorph.model.language_families import LLAMA, Family, family_of, with_defaults
from metamorph.model.weights import read_json

SIZES = ("num_", "hidden", "inter", "vocab", "head", "max_")  # how the names of sizes begin
COMPUTED: Any = None  # the default of a field that `__post_init__` computes from the others
LARGEST = {  # a damaged number would take hours or all memory
    "num_hidden_layers": 1000,
    "hidden_size": 100_000,
    "intermediate_size": 400_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 10_000,
    "vocab_size": 10_000_000,
}
LLAMA3_SCALING_KEYS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


@dataclass
class LanguageConfig:
    """Settings under their Hugging Face names; defaults are those of transformers for a Llama.

    `model_type` is one of `language_families.FAMILIES`.
    `rope_scaling` is None or the Llama-3 dictionary: `rope_type` "llama3" with `factor`,
    `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int = COMPUTED
    head_dim: int = COMPUTED
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    model_type: str = LLAMA

    def __post_init__(self):
        check_types(self, "language.")
        family_of(self.model_type)
        if self.num_key_value_heads is COMPUTED:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is COMPUTED:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(SIZES) and value < 1:
                raise UserError(f"language.{field.name}: expected at least 1, got {value}")
            if field.name in LARGEST and value > LARGEST[field.name]:
                most = LARGEST[field.name]
                raise UserError(
                    f"language.{field.name}: expected at most {most}, got {shown(value)}"
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"language.num_key_value_heads: {self.num_key_value_heads} does not divide "
                f"num_attention_heads, {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise UserError(
                f"language.head_dim: rotary positions need an even number, got {self.head_dim}"
            )
        if self.rope_theta <= 0:
            raise UserError(
                f"language.rope_theta: expected a number above 0, got {self.rope_theta}"
            )
        if self.rms_norm_eps < 0:
            raise UserError(
                f"language.rms_norm_eps: expected a number of at least 0, got {self.rms_norm_eps}"
            )
        if self.rope_scaling is not None:
            self.rope_scaling = _llama3_scaling(self.rope_scaling)

    @property
    def family(self) -> Family:
        """What its `model_type` computes beside a plain Llama."""
        return family_of(self.model_type)

    @classmethod
    def read(cls, folder: Path) -> "LanguageConfig":
        """As `from_dict`, from the config.json of a folder, which every message names."""
        data = read_json(folder / "config.json")
        with within(folder / "config.json"):
            return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict) -> "LanguageConfig":
        """Read a Hugging Face config, with the rotary settings flat or nested.

        Keys that do not change the computation are ignored; UserError for a missing size or for
        what `Llama` does not compute (another model_type, activation, bias, window or scaling).
        """
        if not isinstance(data, dict):
            raise UserError(f"language config: expected a JSON object, got {data!r}")
        data = with_defaults(data)
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise UserError(f"language config: rope_parameters is {rope!r}, expected an object")
        if any(isinstance(value, dict) for value in rope.values()):
            raise UserError(
                "language config: rope_parameters of each kind of layer are not supported"
            )
        rope = dict(rope)
        theta = rope.pop("rope_theta", data.get("rope_theta", cls.rope_theta))
        if rope.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0)) != 1.0:
            raise UserError("language config: partial_rotary_factor other than 1 is not supported")
        scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
        known = {field.name for field in fields(cls)} - {"rope_theta", "rope_scaling"}
        values = {key: data[key] for key in known if key in data}
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise UserError(f"language config: the key {field.name!r} is missing")
        return cls(**values, rope_theta=theta, rope_scaling=rope if scaled else None)

    def to_dict(self) -> dict:
        """The config.json of an equal model of transformers.

        The rotary settings stay flat, a form that both old and new transformers read.
        """
        return {
            "architectures": [self.family.architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            **self.family.settings,
            **asdict(self),
        }


def _llama3_scaling(scaling: dict) -> dict:
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind != "llama3":
        raise UserError(f"language.rope_scaling: only 'llama3' is supported, got {shown(kind)}")
    absent = [key for key in LLAMA3_SCALING_KEYS if key not in scaling]
    if absent:
        raise UserError(f"language.rope_scaling: the key {absent[0]!r} is missing")
    for key in LLAMA3_SCALING_KEYS:
        if not _fits(scaling[key], float) or scaling[key] <= 0:
            raise UserError(
                f"language.rope_scaling: {key} needs a number above 0, got {scaling[key]!r}"
            )
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if low >= high:  # what lies between is divided by their difference
        raise UserError(
            f"language.rope_scaling: high_freq_factor, {high}, needs to be above low_freq_factor, "
            f"{low}"
        )
    return {"rope_type": "llama3"} | {key: scaling[key] for key in LLAMA3_SCALING_KEYS}


def check_types(config: Any, prefix: str = "") -> None:
    """Raise UserError for a field of a dataclass, read from JSON, that is not of its type.

    Where None is the default, as `COMPUTED` is, null in the file says the same.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if field.default is None:
            kind |= None
        if not _fits(value, kind):
            needed = kind.__name__ if isinstance(kind, type) else str(kind)
            raise UserError(f"{prefix}{field.name}: expected {needed}, got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, choice) for choice in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # nor nan
    return isinstance(value, kind)
