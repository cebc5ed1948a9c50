"""Makes model folders known to transformers."""


def register_with_transformers() -> None:
    """Let transformers' Auto classes open MetaMorph folders, without code from elsewhere.

    `AutoConfig`, `AutoModel`, `AutoModelForCausalLM`, `AutoModelForImageTextToText` and
    `AutoProcessor`, for `model_type` metamorph. Calling this twice does no harm.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    from metamorph.integrations.transformers.configuration import MetaMorphPretrainedConfig
    from metamorph.integrations.transformers.modeling import MetaMorphForCausalLM
    from metamorph.integrations.transformers.processing import MetaMorphProcessor

    AutoConfig.register(MetaMorphPretrainedConfig.model_type, MetaMorphPretrainedConfig, True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(MetaMorphPretrainedConfig, MetaMorphForCausalLM, exist_ok=True)
    AutoProcessor.register(MetaMorphPretrainedConfig, MetaMorphProcessor, exist_ok=True)
