"""ChatML as Prismatic's forks write it around Qwen2.5."""

from backbones.prompting.base import PromptBuilder

_DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SYS_PROMPTS = {"prismatic": _DEFAULT, "openvla": _DEFAULT}


class QwenPromptBuilder(PromptBuilder):
    """`<|im_start|>user\\n{question}<|im_end|>\\n<|im_start|>assistant\\n{answer}<|im_end|>\\n`.

    The system prompt opens the whole prompt but is in no turn's piece, and in no potential prompt of a first turn. A
    prompt that ends with an answer has `<|endoftext|>` in place of its last line break. Both are the forks' bytes.
    Raises KeyError for a model family without a default system prompt. Source: Stanford-ILIAD/openvla-mini,
    qwen_prompter.py.
    """

    bos = "<|im_start|>"
    eos = "<|endoftext|>"

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        super().__init__(model_family, system_prompt)
        text = SYS_PROMPTS[model_family] if system_prompt is None else system_prompt
        self.system_prompt: str = text.strip()

    def wrap_human(self, message: str) -> str:
        return f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"

    def wrap_gpt(self, message: str) -> str:
        return f"{message or ' '}<|im_end|>\n"

    def add_turn(self, role: str, message: str) -> str:
        piece = super().add_turn(role, message)
        if self.turn_count == 1:
            self.prompt = f"<|im_start|>system\n{self.system_prompt}<|im_end|>\n{piece}"
        return piece

    def get_potential_prompt(self, message: str) -> str:
        return self.prompt + self.wrap_human(message)

    def get_prompt(self) -> str:
        is_answered = self.turn_count > 0 and self.turn_count % 2 == 0
        return self.prompt.removesuffix("\n") + self.eos if is_answered else self.prompt
