"""`Input: ...` / `Output: ...`: Phi-2, whose tokenizer adds no BOS by itself."""

from backbones.prompting.base import PromptBuilder


class PhiPromptBuilder(PromptBuilder):
    """`<|endoftext|>Input: {question}\\nOutput: {answer}\\n<|endoftext|>`.

    `get_potential_prompt` leaves the first `<|endoftext|>` out although `add_turn` writes it: upstream's bytes.
    """

    bos = "<|endoftext|>"
    eos = "<|endoftext|>"

    def wrap_human(self, message: str) -> str:
        return f"Input: {message}\nOutput: "

    def wrap_gpt(self, message: str) -> str:
        return f"{message or ' '}\n{self.eos}"

    def wrap_first_human(self, message: str) -> str:
        return f"{self.bos}{self.wrap_human(message)}"

    def get_potential_prompt(self, message: str) -> str:
        return (self.prompt + self.wrap_human(message)).rstrip()

    def get_prompt(self) -> str:
        return self.prompt.rstrip()


class PhiFixedPromptBuilder(PhiPromptBuilder):
    """The same, with the first `<|endoftext|>` in a potential prompt too."""

    def get_potential_prompt(self, message: str) -> str:
        return (self.prompt + self._wrap("human", message)).rstrip()
