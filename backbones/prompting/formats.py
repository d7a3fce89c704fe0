"""From the name of a prompt format to its builder class."""

from typing import TYPE_CHECKING, Literal

from backbones.prompting.base import PromptBuilder
from backbones.prompting.chat_template import chat_template_builder
from backbones.prompting.llama2_chat import LLaMa2ChatFixedPromptBuilder, LLaMa2ChatPromptBuilder
from backbones.prompting.mistral_instruct import MistralInstructPromptBuilder
from backbones.prompting.paligemma import paligemma_prompt_builder
from backbones.prompting.phi import PhiFixedPromptBuilder, PhiPromptBuilder
from backbones.prompting.pure import PurePromptBuilder, pure_prompt_builder
from backbones.prompting.qwen import QwenPromptBuilder
from backbones.prompting.vicuna_v15_chat import VicunaV15ChatPromptBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptVariant = Literal["legacy", "standard"]  # legacy: the exact bytes that OpenVLA's checkpoints were trained on

_LEGACY: dict[str, type[PromptBuilder]] = {
    "PurePromptBuilder": PurePromptBuilder,
    "LLaMa2ChatPromptBuilder": LLaMa2ChatPromptBuilder,
    "VicunaV15ChatPromptBuilder": VicunaV15ChatPromptBuilder,
    "MistralInstructPromptBuilder": MistralInstructPromptBuilder,
    "PhiPromptBuilder": PhiPromptBuilder,
    "QwenPromptBuilder": QwenPromptBuilder,
}
_STANDARD: dict[str, type[PromptBuilder]] = {
    **_LEGACY,
    "LLaMa2ChatPromptBuilder": LLaMa2ChatFixedPromptBuilder,
    "PhiPromptBuilder": PhiFixedPromptBuilder,
}


def prompt_builder_class(
    name: str, variant: PromptVariant, tokenizer: "PreTrainedTokenizerBase"
) -> type[PromptBuilder]:
    """The builder class called `name`; in the standard variant Pure and chat templates follow the tokenizer."""
    if name == "ChatTemplatePromptBuilder":
        return chat_template_builder(tokenizer)
    if name == "PurePromptBuilder" and variant == "standard":
        return pure_prompt_builder(tokenizer.bos_token or "", tokenizer.eos_token or "")
    if name == "PaliGemmaPromptBuilder":
        return paligemma_prompt_builder(tokenizer.bos_token or "", tokenizer.eos_token or "")
    builders = _LEGACY if variant == "legacy" else _STANDARD
    if name not in builders:
        known = ", ".join([*builders, "PaliGemmaPromptBuilder", "ChatTemplatePromptBuilder"])
        raise ValueError(f"no prompt builder is called {name!r}; choose one of: {known}")
    return builders[name]
