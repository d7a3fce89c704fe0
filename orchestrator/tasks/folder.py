"""A Hugging Face folder as a model that lm-evaluation-harness asks."""

from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM

from backbones.loading import raise_unless_whole
from backbones.reference import InvalidReferenceError, resolve_reference
from backbones.tokenizer import read_tokenizer
from orchestrator.errors import InputError
from orchestrator.tasks.harness import without_advice


class FolderModel(HFLM):
    """As the library asks a folder, but for long texts.

    It answers equal windows with one pass, also those that begin to count at different places, and then reads the
    wrong logits for all but one of them (lm_eval 0.4.13). So long texts are asked window by window.
    """

    logits_cache: bool

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        reuses, self.logits_cache = self.logits_cache, False
        try:
            return list(super().loglikelihood_rolling(requests, disable_tqdm))
        finally:
            self.logits_cache = reuses


def open_folder(folder: Path, batch_size: int, max_length: int | None = None) -> FolderModel:
    """The model of a folder in the dtype that it is stored in, on the GPUs that there are, else on the processor.

    Weights and tokenizer are read as for training: safetensors alone, all of them and no others, and the ids of
    tokenizer.json. accelerate spreads the layers where one GPU is too small. `max_length`, tokens, is the model's
    context unless it is given. Raises InputError where the folder is no model that can be asked, and WeightsError.
    """
    try:
        spec = resolve_reference(f"hf:{folder.expanduser().resolve()}")
    except InvalidReferenceError as error:
        raise InputError(str(error).removeprefix("hf:")) from error
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        spec.source,
        dtype="auto",
        device_map="auto" if torch.cuda.is_available() else None,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    raise_unless_whole(str(folder), *(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")))
    length = max_length or spec.context_length or HFLM._DEFAULT_MAX_LENGTH
    tokenizer = read_tokenizer(spec.source, max_length=length).tokenizer
    with without_advice():
        return FolderModel(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size, max_length=length)
