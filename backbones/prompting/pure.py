"""`In: ...` / `Out: ...`: the format of base models."""

from backbones.prompting.base import PromptBuilder


class PurePromptBuilder(PromptBuilder):
    """`In: {question}\\nOut: {answer}</s>`, with Llama's BOS and EOS."""

    def wrap_human(self, message: str) -> str:
        return f"In: {message}\nOut: "


def pure_prompt_builder(bos: str, eos: str) -> type[PurePromptBuilder]:
    """`PurePromptBuilder` with another tokenizer's BOS ("" where it has none) and EOS."""
    return type("PurePromptBuilder", (PurePromptBuilder,), {"__module__": __name__, "bos": bos, "eos": eos})
