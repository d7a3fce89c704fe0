"""Hugging Face folders with a small random model of a registered family: what can be proved without its weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from backbones.causal_lm import find_class, make_config
from backbones.spec import Architecture, BackboneSpec

# family: the id that stands for it, and the tokenizer of the kit that is its own or the nearest to it
FAMILY_REPRESENTATIVES = {
    "llama2": ("llama2-7b-pure", "llama2"),
    "llama3": ("llama3.2-1b-instruct", "llama3"),
    "mistral": ("mistral-v0.1-7b-pure", "mistral-v1"),
    "phi": ("phi-2-3b", "gpt2"),
    "phi3": ("phi-3-mini-4k-instruct", "phi3"),
    "qwen2": ("qwen2.5-0.5b-instruct", "qwen3"),
    "qwen3": ("qwen3-0.6b", "qwen3"),
    "gemma2": ("gemma-2-2b", "stories512"),
    "gemma3": ("gemma-3-270m", "stories512"),
    "smollm2": ("smollm2-135m-instruct", "smollm2"),
    "smollm3": ("smollm3-3b", "llama3"),
    "olmo2": ("olmo-2-1b", "gpt2"),
    "neox": ("pythia-160m", "gpt2"),
    "gpt2": ("gpt2", "gpt2"),
}
_HEADS, _HIDDEN = 4, 64
_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja")


def make_small_folder(spec: BackboneSpec, folder: Path, tokenizer_folder: Path, *, rows: int | None = None) -> Path:
    """A folder with a three-layer random model of the spec's class, saved by transformers, beside that tokenizer.

    It keeps what makes the family: tied or not, grouped queries, a head size of its own, and the spec's `config`, with
    windows of 16 tokens and at least one layer of every kind. Every parameter is away from its initial value, norms and
    biases too, so one that is not loaded shows. The embedding has the rows that the tokenizer needs, or `rows` of them.
    The same call writes the same bytes.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder, local_files_only=True)
    llm = make_small_llm(spec, rows or max(tokenizer.get_vocab().values()) + 1, tokenizer)
    llm.save_pretrained(folder)
    for pattern in _TOKENIZER_FILES:
        for path in tokenizer_folder.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    return folder


def make_small_llm(spec: BackboneSpec, rows: int, tokenizer: PreTrainedTokenizerFast | None = None) -> PreTrainedModel:
    """The model of `make_small_folder`, with as many rows, and BOS and EOS of a tokenizer."""
    config = make_config(_small(spec, rows))
    if tokenizer is not None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    if spec.family == "gemma3":
        config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llm: PreTrainedModel = find_class(spec)._from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in llm.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return llm


def small_spec(spec: BackboneSpec, backbone_id: str, folder: Path) -> BackboneSpec:
    """The spec, all but its sizes, of a backbone in a folder of `make_small_folder`: register it to build it by id."""
    return replace(spec, backbone_id=backbone_id, hf_hub_path=str(folder), revision=None)


def _small(spec: BackboneSpec, rows: int) -> BackboneSpec:
    sizes = spec.architecture
    own_head_dim = sizes.head_dim * sizes.num_heads != sizes.hidden_size
    head_dim = _HIDDEN // _HEADS * (2 if own_head_dim else 1)
    smaller = {
        "n_inner": 128,
        "query_pre_attn_scalar": head_dim,
        "sliding_window": 16,
        "no_rope_layer_interval": 2,
    }
    return replace(
        spec,
        context_length=512,
        architecture=Architecture(
            hidden_size=_HIDDEN,
            intermediate_size=128,
            num_layers=3,
            num_heads=_HEADS,
            num_kv_heads=min(max(_HEADS * sizes.num_kv_heads // sizes.num_heads, 1), _HEADS),
            head_dim=head_dim,
            vocab_size=rows,
            tied_embeddings=sizes.tied_embeddings,
        ),
        config=tuple((key, smaller.get(key, value) if value is not None else None) for key, value in spec.config),
    )
