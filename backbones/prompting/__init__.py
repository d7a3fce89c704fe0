"""Prompt formats, and the codec that turns conversations and texts into token ids with label masks."""

from backbones.prompting.base import PromptBuilder
from backbones.prompting.chat_template import ChatTemplatePromptBuilder, chat_template_builder
from backbones.prompting.codec import Codec, Encoded
from backbones.prompting.formats import PromptVariant, prompt_builder_class
from backbones.prompting.image_tokens import CodecError, ImageTokens
from backbones.prompting.llama2_chat import LLaMa2ChatFixedPromptBuilder, LLaMa2ChatPromptBuilder
from backbones.prompting.mistral_instruct import MistralInstructPromptBuilder
from backbones.prompting.phi import PhiFixedPromptBuilder, PhiPromptBuilder
from backbones.prompting.pure import PurePromptBuilder, pure_prompt_builder
from backbones.prompting.qwen import QwenPromptBuilder
from backbones.prompting.vicuna_v15_chat import VicunaV15ChatPromptBuilder

__all__ = [
    "ChatTemplatePromptBuilder",
    "Codec",
    "CodecError",
    "Encoded",
    "ImageTokens",
    "LLaMa2ChatFixedPromptBuilder",
    "LLaMa2ChatPromptBuilder",
    "MistralInstructPromptBuilder",
    "PhiFixedPromptBuilder",
    "PhiPromptBuilder",
    "PromptBuilder",
    "PromptVariant",
    "PurePromptBuilder",
    "QwenPromptBuilder",
    "VicunaV15ChatPromptBuilder",
    "chat_template_builder",
    "prompt_builder_class",
    "pure_prompt_builder",
]
