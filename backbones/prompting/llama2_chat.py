"""Llama-2's chat format with a system prompt, as OpenVLA ships it and as Meta defines it."""

from backbones.prompting.base import PromptBuilder

_DEFAULT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SYS_PROMPTS = {"prismatic": _DEFAULT, "openvla": _DEFAULT}


class LLaMa2ChatPromptBuilder(PromptBuilder):
    """`[INST] <<SYS>\\n{system}\\n<</SYS>>\\n\\n{question} [/INST] {answer}</s>`.

    The opening tag lacks its second `>`: released checkpoints were trained on these bytes. Raises KeyError for a model
    family without a default system prompt.
    """

    uses_system_prompt = True
    system_tag = "<<SYS>"

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        super().__init__(model_family, system_prompt)
        text = SYS_PROMPTS[model_family] if system_prompt is None else system_prompt
        self.system_prompt: str = f"{self.system_tag}\n{text.strip()}\n<</SYS>>\n\n"

    def wrap_human(self, message: str) -> str:
        return f"[INST] {message} [/INST] "

    def wrap_first_human(self, message: str) -> str:
        return self.wrap_human(self.system_prompt + message)


class LLaMa2ChatFixedPromptBuilder(LLaMa2ChatPromptBuilder):
    """The same with the `<<SYS>>` that Meta trained on (meta-llama/llama, llama/generation.py)."""

    system_tag = "<<SYS>>"
