"""A question, a line break, an answer: the format of PaliGemma."""

from backbones.prompting.base import PromptBuilder


class PaliGemmaPromptBuilder(PromptBuilder):
    """`{question}\\n{answer}<eos>`; the tokenizer puts BOS in front. Source: transformers, PaliGemmaProcessor."""

    bos = "<bos>"
    eos = "<eos>"

    def wrap_human(self, message: str) -> str:
        return f"{message}\n"


def paligemma_prompt_builder(bos: str, eos: str) -> type[PaliGemmaPromptBuilder]:
    """`PaliGemmaPromptBuilder` with the BOS and EOS of a tokenizer."""
    return type("PaliGemmaPromptBuilder", (PaliGemmaPromptBuilder,), {"__module__": __name__, "bos": bos, "eos": eos})
