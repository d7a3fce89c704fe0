"""Real tokenizers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture
def kit_tokenizer(kit: Path) -> Callable[[str], PreTrainedTokenizerBase]:
    return lambda name: AutoTokenizer.from_pretrained(kit / "tokenizers" / name, local_files_only=True)
