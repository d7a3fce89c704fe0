"""A GGUF file as a Hugging Face folder: `python -m backbones.gguf_folder FILE FOLDER`. The only door to `gguf`.

It converts what it can convert exactly, models of architecture `llama` with a byte-level BPE tokenizer, and refuses
the rest with the reason. Every piece of metadata that may shape the model or its tokenizer must be one known here:
scaled rotary embeddings, experts, or a normalizer would otherwise be dropped without a word.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import LlamaConfig

Facts = dict[str, Any]  # the file's metadata: name -> int, float, bool, str, or a list of these

_ARCHITECTURE = "general.architecture"
_SIZES = {
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.context_length": "max_position_embeddings",
}
_REQUIRED = {
    *(_ARCHITECTURE, *_SIZES, "llama.attention.layer_norm_rms_epsilon"),
    *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges", "eos_token_id")),
}
_HEAD_SIZES = ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count")
_SPECIAL = {
    role: f"tokenizer.ggml.{name}_token_id"
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
}
_REFUSED_FLAGS = {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"}  # known, and converted when false
_OPTIONAL = {
    *("llama.attention.head_count_kv", "llama.rope.freq_base", "llama.vocab_size", *_HEAD_SIZES, *_SPECIAL.values()),
    *("tokenizer.ggml.add_bos_token", "tokenizer.chat_template", *_REFUSED_FLAGS),
}

# llama.cpp's names for the rules that cut a text into words, before merges apply.
_PRE_TOKENIZERS = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types; the others (unknown, unused, byte) occur in no BPE known here


class GgufError(ValueError):
    """The file is no whole GGUF file, or holds a model that would not be converted exactly."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes config, fp32 safetensors and tokenizer to a new folder, which appears only when it is complete.

    Needs memory for the weights in fp32. Raises GgufError.
    """
    if folder.exists():
        raise GgufError(f"{folder} exists already; delete it to convert {file.name} anew, or name another folder")
    reader = _open(file)
    facts = {
        name: field.contents()
        for name, field in reader.fields.items()
        if name == _ARCHITECTURE or name.startswith(("llama.", "tokenizer."))
    }
    _check_metadata(file, facts)
    config = _config(file, facts, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    tokenizer, tokenizer_config = _tokenizer(file, facts)
    weights = _weights(file, reader, config)
    staged = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(staged, ignore_errors=True)  # of a conversion that was interrupted
    staged.mkdir(parents=True)
    save_file(weights, staged / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(staged)
    (staged / "model.safetensors").chmod((staged / "config.json").stat().st_mode)  # else for this user alone
    tokenizer.save(str(staged / "tokenizer.json"))
    text = json.dumps(tokenizer_config, indent=2, ensure_ascii=False)
    (staged / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    staged.rename(folder)


def _open(file: Path) -> "GGUFReader":
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise GgufError(
            "reading GGUF needs the extra of that name: pip install 'backbone-orchestrator[gguf]'"
        ) from error
    if not file.is_file():
        raise GgufError(f"there is no file {file}")
    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise GgufError(f"{file} is not a GGUF file: it does not begin with the letters GGUF")
    try:
        reader = GGUFReader(file)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise GgufError(f"{file} is damaged, unfinished, or of an unknown version ({error}); get it again") from error
    return reader


def _check_metadata(file: Path, facts: Facts) -> None:
    """All that is needed is there, and nothing else is."""
    if facts.get(_ARCHITECTURE) != "llama":
        raise GgufError(f"{file} holds a model of architecture {facts.get(_ARCHITECTURE)!r}; only 'llama' is converted")
    if missing := sorted(_REQUIRED - facts.keys()):
        raise GgufError(f"{file} lacks the metadata {', '.join(missing)}, without which no model can be made of it")
    if unknown := sorted(facts.keys() - _REQUIRED - _OPTIONAL):
        raise GgufError(f"{file} has metadata whose meaning would be lost: {', '.join(unknown)}; it is not converted")
    for name in sorted(_REFUSED_FLAGS):
        if facts.get(name):
            raise GgufError(f"{file} sets {name}, which is not converted")
    for name, known in (("model", ("gpt2",)), ("pre", tuple(_PRE_TOKENIZERS))):
        if (value := facts[f"tokenizer.ggml.{name}"]) not in known:
            raise GgufError(f"{file} has a tokenizer whose {name} is {value!r}; converted are {', '.join(known)}")


def _config(file: Path, facts: Facts, *, tied: bool) -> "LlamaConfig":
    from transformers import LlamaConfig

    sizes = {ours: facts[name] for name, ours in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    kv_heads = facts.get("llama.attention.head_count_kv", heads)
    if not all(isinstance(size, int) and size > 0 for size in (*sizes.values(), kv_heads)) or heads % kv_heads:
        raise GgufError(f"{file} has sizes that no Llama has: {sizes}, key-value heads {kv_heads}")
    head_sizes = {facts.get(name, sizes["hidden_size"] // heads) for name in _HEAD_SIZES}
    if len(head_sizes) != 1 or (head_dim := head_sizes.pop()) % 2:
        raise GgufError(f"{file} rotates only part of each head, or its heads differ: {', '.join(_HEAD_SIZES)}")
    tokens = len(facts["tokenizer.ggml.tokens"])
    if facts.get("llama.vocab_size", tokens) != tokens:
        raise GgufError(f"{file} has {tokens} tokens, but its model expects {facts['llama.vocab_size']}")
    special = {role: facts[name] for role, name in _SPECIAL.items() if name in facts}
    if not all(token < tokens for token in special.values()):
        raise GgufError(f"{file} names special tokens beyond its {tokens} tokens: {special}")
    return LlamaConfig(
        **sizes,
        architectures=["LlamaForCausalLM"],
        vocab_size=tokens,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_shortest(facts["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": _shortest(facts.get("llama.rope.freq_base", 10_000.0))},
        tie_word_embeddings=tied,
        bos_token_id=special.get("bos"),
        eos_token_id=special["eos"],
        pad_token_id=special.get("pad"),
        dtype="float32",
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same fp32 number: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokenizer(file: Path, facts: Facts) -> tuple[Tokenizer, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json, from the file's own tokens and merges."""
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    ids = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    if len(ids) != len(tokens) or len(types) != len(tokens) or set(types) - {_NORMAL, _CONTROL, _USER_DEFINED}:
        raise GgufError(f"{file} has tokens that are doubled, or of types that a byte-level BPE does not have")
    if wrong := [merge for merge in merges if len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys()]:
        raise GgufError(f"{file} has {len(wrong)} merges that make no token of it, the first is {wrong[0]}")
    tokenizer = Tokenizer(BPE(ids, merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[facts["tokenizer.ggml.pre"]]
    tokenizer.decoder = ByteLevelDecoder()
    added = [(AddedToken(token, normalized=False), kind) for token, kind in zip(tokens, types, strict=True)]
    tokenizer.add_special_tokens([token for token, role in added if role == _CONTROL])
    tokenizer.add_tokens([token for token, role in added if role == _USER_DEFINED])
    special = {role: tokens[facts[name]] for role, name in _SPECIAL.items() if name in facts}
    if facts.get("tokenizer.ggml.add_bos_token"):
        if (bos := special.get("bos")) is None:
            raise GgufError(f"{file} puts a BOS in front of each text and does not say which token that is")
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in special.items()},
    }
    if template := facts.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return tokenizer, config


def _weights(file: Path, reader: "GGUFReader", config: "LlamaConfig") -> dict[str, np.ndarray]:
    """Every tensor in fp32, under transformers' name."""
    from gguf import dequantize

    expected = _expected_tensors(config)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if wrong := sorted(expected.keys() ^ found.keys()):
        raise GgufError(
            f"{file}: {len(wrong)} tensors are missing, or have no place in a Llama: {', '.join(wrong[:5])}"
        )
    weights: dict[str, np.ndarray] = {}
    for name, (ours, shape) in expected.items():
        tensor = found[name]
        if tuple(reversed(tensor.shape.tolist())) != shape:
            raise GgufError(f"{file}: {name} is {tensor.shape.tolist()[::-1]}, but the metadata makes it {list(shape)}")
        try:
            weight = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise GgufError(f"{file}: {name} is {tensor.tensor_type.name}, which gguf cannot dequantize") from error
        if ".attn_q." in name or ".attn_k." in name:
            weight = _halves(weight, config.head_dim)
        weights[ours] = np.ascontiguousarray(weight, dtype=np.float32)
    return weights


def _expected_tensors(config: "LlamaConfig") -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF's name of every tensor of the model, with transformers' name and the shape (outputs, inputs)."""
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    layer = {
        "attn_norm": ("input_layernorm", (hidden,)),
        "attn_q": ("self_attn.q_proj", (queries, hidden)),
        "attn_k": ("self_attn.k_proj", (keys, hidden)),
        "attn_v": ("self_attn.v_proj", (keys, hidden)),
        "attn_output": ("self_attn.o_proj", (hidden, queries)),
        "ffn_norm": ("post_attention_layernorm", (hidden,)),
        "ffn_gate": ("mlp.gate_proj", (inner, hidden)),
        "ffn_up": ("mlp.up_proj", (inner, hidden)),
        "ffn_down": ("mlp.down_proj", (hidden, inner)),
    }
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocabulary, hidden)),
        "output_norm.weight": ("model.norm.weight", (hidden,)),
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = ("lm_head.weight", (vocabulary, hidden))
    for number in range(config.num_hidden_layers):
        for theirs, (ours, shape) in layer.items():
            tensors[f"blk.{number}.{theirs}.weight"] = (f"model.layers.{number}.{ours}.weight", shape)
    return tensors


def _halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Query or key rows as transformers has them: the first and then the second members of a head's rotated pairs.

    llama.cpp's `LlamaModel.permute` (convert_hf_to_gguf.py) put each pair side by side.
    """
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description="Converts a GGUF file to a Hugging Face folder.")
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        convert_gguf(arguments.file, arguments.folder)
    except GgufError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
