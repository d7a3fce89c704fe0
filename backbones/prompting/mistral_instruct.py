"""`[INST] ... [/INST]`: Mistral-7B-Instruct, which knows no system prompt."""

from backbones.prompting.base import PromptBuilder


class MistralInstructPromptBuilder(PromptBuilder):
    """`[INST] {question} [/INST] {answer}</s>`."""

    def wrap_human(self, message: str) -> str:
        return f"[INST] {message} [/INST] "
