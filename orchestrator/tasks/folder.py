"""A Hugging Face folder as a model that lm-evaluation-harness asks."""

from pathlib import Path

import torch
import transformers

from backbones.loading import raise_unless_whole
from backbones.reference import InvalidReferenceError, resolve_reference
from backbones.tokenizer import read_tokenizer
from orchestrator.errors import InputError
from orchestrator.tasks.harness import without_advice
from orchestrator.tasks.model import AskedModel


def open_folder(folder: Path, batch_size: int, max_length: int | None = None) -> AskedModel:
    """The model of a folder in the dtype that it is stored in, on the GPUs that there are, else on the processor.

    Weights and tokenizer are read as for training: safetensors alone, all of them and no others, and the ids of
    tokenizer.json. accelerate spreads the layers where one GPU is too small. `max_length`, tokens, is the model's
    context unless it is given. Raises InputError where the folder is no model that can be asked, and WeightsError.
    """
    try:
        spec = resolve_reference(f"hf:{folder.expanduser().resolve()}")
    except InvalidReferenceError as error:
        raise InputError(str(error).removeprefix("hf:")) from error
    if spec.vision is not None:
        raise InputError(
            f"{folder} is a model that sees, and the tasks of lm-evaluation-harness that are asked here are of text "
            "alone; finetune from it (backbone: hf:FOLDER) to have it scored on held-out rows with images"
        )
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
    length = max_length or spec.context_length or AskedModel._DEFAULT_MAX_LENGTH
    tokenizer = read_tokenizer(spec.source, family=spec.family, max_length=length).tokenizer
    with without_advice():
        return AskedModel(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size, max_length=length)
