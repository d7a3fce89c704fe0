"""What `AutoProcessor` reads in a folder so that one call, of text and images, gives what training was given."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER_CONFIG = "processor_config.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Processor:
    """A class of transformers, and how it has to be told of this backbone.

    `settings` besides its name; `tokens` are texts of tokens by the attribute of the tokenizer in which the class looks
    for them; `prompt` asks about one image, with `{question}` for the question, and has one token where the class puts
    all that stand for the image.
    """

    name: str
    settings: dict[str, Any]
    tokens: dict[str, str]
    prompt: str

    def save(self, folder: Path) -> None:
        """Beside a tokenizer and an image processor that are there."""
        (folder / CONFIG).write_text(json.dumps({"processor_class": self.name, **self.settings}, indent=2), "utf-8")
        file = folder / TOKENIZER_CONFIG
        described = json.loads(file.read_text("utf-8")) | self.tokens
        file.write_text(json.dumps(described, indent=2, ensure_ascii=False), "utf-8")
