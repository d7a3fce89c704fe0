"""The class of transformers that a backbone is loaded by."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from backbones.loading import WeightsError


def concrete_class(llm_cls: type, hf_hub_path: str, **options: Any) -> type[PreTrainedModel]:
    """The class itself, or the one that AutoModelForCausalLM, which forks of Prismatic write, takes for a config.json.

    Raises WeightsError where it takes none, and for anything else that is no class of a model.
    """
    if issubclass(llm_cls, PreTrainedModel):
        return llm_cls
    if not issubclass(llm_cls, AutoModelForCausalLM):
        raise WeightsError(
            f"{hf_hub_path}: llm_cls is {llm_cls.__name__}, which is no class of a language model; give one of "
            "transformers, such as LlamaForCausalLM, or AutoModelForCausalLM"
        )
    config = AutoConfig.from_pretrained(hf_hub_path, **options)
    taken: type[PreTrainedModel] | None = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if taken is None:
        raise WeightsError(
            f"{hf_hub_path}: config.json is of model type {config.model_type}, "
            f"and {llm_cls.__name__} has no class for it"
        )
    return taken


def check_class(identifier: str, llm_cls: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """A checkpoint loaded by a class it was not made for trains without an error, and badly. Raises WeightsError."""
    declared = config.architectures or [llm_cls.__name__]
    if not isinstance(config, llm_cls.config_class) or llm_cls.__name__ not in declared:
        raise WeightsError(
            f"{identifier}: config.json is of model type {config.model_type} and class {declared[0]}, "
            f"but the backbone loads it as {llm_cls.__name__}"
        )
