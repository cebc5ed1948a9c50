"""The config.json of a model folder as transformers reads and writes it."""

from dataclasses import fields
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from metamorph.model.language_families import LLAMA, family_of
from metamorph.model.unified import MODEL_TYPE, WRITTEN_BY_TRANSFORMERS, MetaMorphConfig

OWN = tuple(field.name for field in fields(MetaMorphConfig))
# With the last one a folder is for transformers alone, and our own reader says so.
WRITTEN = {"model_type", *OWN, *WRITTEN_BY_TRANSFORMERS, "quantization_config"}
# What `from_pretrained` was told of where to get files from, for those that it has to get itself.
FROM_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class MetaMorphPretrainedConfig(PretrainedConfig):
    """`MetaMorphConfig` under the same names, with `language` as the config of its `model_type`.

    What else transformers or a trainer sets on it, such as `use_cache`, is not saved: the file
    stays one that `MetaMorphConfig.read` reads.
    """

    model_type = MODEL_TYPE
    sub_configs = {"language": AutoConfig}

    def __init__(self, language: dict | PretrainedConfig | None = None, **values: Any):
        if not isinstance(language, PretrainedConfig):
            settings = {"model_type": LLAMA} | (language or {})
            family_of(settings["model_type"])
            language = AutoConfig.for_model(**settings)
        self.language = language
        tied = self.language.tie_word_embeddings
        super().__init__(**values | {"tie_word_embeddings": tied})

    def checked(self) -> MetaMorphConfig:
        """The same as our own. `UserError` if something is missing or does not fit."""
        own = {name: getattr(self, name) for name in OWN if hasattr(self, name)}
        language = self.language.to_dict()
        return MetaMorphConfig.from_dict(own | {"model_type": MODEL_TYPE, "language": language})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None):
        return self.language

    def to_diff_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_diff_dict().items() if key in WRITTEN}
