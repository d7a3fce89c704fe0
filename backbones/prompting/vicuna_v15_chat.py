"""`USER: ... ASSISTANT: ...`: Vicuna v1.5."""

from backbones.prompting.base import PromptBuilder

_DEFAULT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SYS_PROMPTS = {"prismatic": _DEFAULT, "openvla": _DEFAULT}


class VicunaV15ChatPromptBuilder(PromptBuilder):
    """`{system} USER: {question} ASSISTANT: {answer}</s>`. Raises KeyError for a family without a default system."""

    uses_system_prompt = True

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        super().__init__(model_family, system_prompt)
        text = SYS_PROMPTS[model_family] if system_prompt is None else system_prompt
        self.system_prompt: str = text.strip() + " "

    def wrap_human(self, message: str) -> str:
        return f"USER: {message} ASSISTANT: "

    def wrap_first_human(self, message: str) -> str:
        return self.system_prompt + self.wrap_human(message)
