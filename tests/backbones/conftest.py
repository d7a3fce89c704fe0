"""Real tokenizers and small models; tests that need them are skipped where they are absent."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

KIT = Path(__file__).parents[2].parent / "shared" / "kit"


@pytest.fixture(scope="session")
def kit() -> Path:
    if not KIT.is_dir():
        pytest.skip(f"the kit of real tokenizers and models is not at {KIT}")
    return KIT


@pytest.fixture
def kit_tokenizer(kit: Path) -> Callable[[str], PreTrainedTokenizerBase]:
    return lambda name: AutoTokenizer.from_pretrained(kit / "tokenizers" / name, local_files_only=True)
