"""GGUF files written here by `gguf` itself: what is converted equals the model and tokenizer that went in, exactly.

Over 300 lines: the files that are refused stand beside the writer that makes them.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from backbones.gguf_folder import GgufError, convert_gguf
from backbones.registry import get_spec

ROOT = Path(__file__).parents[2]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "he", "Ġt", "Ġthe"]
MERGES = ["h e", "Ġ t", "Ġt he"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MULTILINGUAL = (
    "The year 2026 has 365 days; 3.14159 is about π.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, 1 234 567 Mal.",
    "Le cœur déçu mais l'âme plutôt naïve: 50 %",
    "съешь ещё этих мягких французских булок",
    "いろはにほへと 二〇二六年 ١٢٣ ½ Ⅻ",
    "नमस्ते दुनिया १२३",
    "你好，世界！😀👩‍👩‍👧",
    "\t\n\r\n  leading, trailing   \n\n",
    "<|im_start|>user\nIt's they'll I'VE<|im_end|>\n<repo_name>x<file_sep>",
    "def f(x):\n    return x**2 + 10_000\n",
)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """Random, with fewer key than query heads: a wrong order of their rows changes every logit."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def metadata(**changes: Any) -> dict[str, Any]:
    """The metadata of a file that converts; `changes` replace entries (`__` stands for a dot), None removes one."""
    facts = {
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return {name: value for name, value in facts.items() if value is not None}


def tensors_of(llama: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights as llama.cpp's convert_hf_to_gguf.py names and orders them."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {name: weight.numpy() for name, weight in llama.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not llama.config.tie_word_embeddings:
        tensors["output.weight"] = weights["lm_head.weight"]
    for layer in range(llama.config.num_hidden_layers):
        for theirs, ours in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                heads = llama.config.num_attention_heads if ours == "attn_q" else llama.config.num_key_value_heads
                rows = weight.shape[0] // heads // 2
                weight = weight.reshape(heads, 2, rows, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{ours}.weight"] = np.ascontiguousarray(weight)
    return tensors


def write(
    file: Path,
    tensors: dict[str, np.ndarray],
    facts: dict[str, Any],
    *,
    architecture: str = "llama",
    quantization: GGMLQuantizationType | None = None,
) -> Path:
    """A GGUF file; matrices are quantized where that is asked for."""
    writer = GGUFWriter(file, architecture)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in facts.items():
        add[type(value)](name, value)
    for name, weight in tensors.items():
        if quantization is None or weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_gives_the_logits_of_the_one_that_was_written(
    tied: bool, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    config = LlamaConfig.from_dict({**llama.config.to_dict(), "tie_word_embeddings": tied})
    torch.manual_seed(1)
    original = LlamaForCausalLM(config).eval()
    convert_gguf(write(tmp_path / "model.gguf", tensors_of(original), metadata()), tmp_path / "model")

    converted, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert converted.config.tie_word_embeddings is tied
    assert (converted.config.rms_norm_eps, converted.config.rope_parameters["rope_theta"]) == (1e-5, 5000.0)
    ids = torch.randint(len(TOKENS), (2, 100), generator=torch.manual_seed(2))
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, original(ids).logits)


@pytest.mark.parametrize("quantization", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_quantized_weights_become_the_fp32_values_that_gguf_gives_them(
    quantization: GGMLQuantizationType, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    tensors = tensors_of(llama)
    convert_gguf(write(tmp_path / "model.gguf", tensors, metadata(), quantization=quantization), tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in found.values()} == {np.dtype(np.float32)}
    expected = dequantize(quantize(tensors["blk.1.ffn_up.weight"], quantization), quantization)
    assert np.array_equal(found["model.layers.1.mlp.up_proj.weight"], expected)
    assert not np.array_equal(expected, tensors["blk.1.ffn_up.weight"])


def test_a_converted_folder_is_a_backbone_with_its_own_chat_template(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    convert_gguf(write(tmp_path / "model.gguf", tensors_of(llama), metadata()), tmp_path / "model")
    spec = get_spec(f"hf:{tmp_path}/model")
    assert (spec.llm_cls, spec.prompt_builder) == ("LlamaForCausalLM", "ChatTemplatePromptBuilder")
    assert (spec.parameters, spec.context_length) == (llama.num_parameters(), 128)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o077  # readable to others, as the config is
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    turns = [{"role": "user", "content": "the 12"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids[0] == 1 and ids.count(2) == 1  # control tokens, not their letters
    assert tokenizer.convert_ids_to_tokens(tokenizer("the 12")["input_ids"]) == ["t", "he", "Ġ", "1", "2"]


def test_a_tokenizer_that_adds_bos_adds_it(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    facts = metadata(tokenizer__ggml__add_bos_token=True)
    convert_gguf(write(tmp_path / "model.gguf", tensors_of(llama), facts), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("he")["input_ids"] == [1, TOKENS.index("he")]
    assert tokenizer("he", add_special_tokens=False)["input_ids"] == [TOKENS.index("he")]


@pytest.mark.parametrize(("name", "pre"), [("smollm2", "smollm"), ("gpt2", "gpt-2")])
def test_a_tokenizer_rebuilt_from_its_tokens_and_merges_equals_the_real_one(
    name: str, pre: str, kit: Path, kit_tokenizer: Callable[[str], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    real = json.loads((kit / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8"))
    control = {token["id"] for token in real["added_tokens"]}
    ids = {**real["model"]["vocab"], **{token["content"]: token["id"] for token in real["added_tokens"]}}
    tokens = sorted(ids, key=lambda token: ids[token])
    facts = metadata(
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[3 if number in control else 1 for number in range(len(tokens))],
        tokenizer__ggml__merges=[
            merge if isinstance(merge, str) else " ".join(merge) for merge in real["model"]["merges"]
        ],
        tokenizer__ggml__pre=pre,
        tokenizer__ggml__bos_token_id=0,
        tokenizer__ggml__eos_token_id=0,
        llama__embedding_length=8,
        llama__feed_forward_length=8,
        llama__attention__head_count=1,
        llama__attention__head_count_kv=1,
        llama__block_count=1,
        llama__rope__dimension_count=8,
    )
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    file = write(tmp_path / "model.gguf", tensors_of(LlamaForCausalLM(config)), facts)
    convert_gguf(file, tmp_path / "model")

    rebuilt = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert rebuilt.get_vocab() == kit_tokenizer(name).get_vocab()
    for text in MULTILINGUAL:
        assert rebuilt(text)["input_ids"] == kit_tokenizer(name)(text)["input_ids"], text
        assert rebuilt.decode(rebuilt(text)["input_ids"]) == text
    assert Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).get_added_tokens_decoder().keys() == control


REFUSED = [
    ({"tokenizer__ggml__merges": None}, "lacks the metadata tokenizer.ggml.merges"),
    ({"llama__block_count": None}, "lacks the metadata llama.block_count"),
    ({"llama__rope__scaling__factor": 8.0}, "meaning would be lost: llama.rope.scaling.factor"),
    ({"llama__expert_count": 8}, "meaning would be lost: llama.expert_count"),
    ({"tokenizer__ggml__add_eos_token": True}, "sets tokenizer.ggml.add_eos_token"),
    ({"tokenizer__ggml__model": "llama"}, "tokenizer whose model is 'llama'; converted are gpt2"),
    ({"tokenizer__ggml__pre": "tekken"}, "tokenizer whose pre is 'tekken'; converted are gpt-2, smollm"),
    ({"tokenizer__ggml__merges": ["h e", "e x"]}, "1 merges that make no token of it, the first is ('e', 'x')"),
    ({"tokenizer__ggml__token_type": [5] * len(TOKENS)}, "of types that a byte-level BPE does not have"),
    ({"tokenizer__ggml__tokens": ["a"] * len(TOKENS)}, "tokens that are doubled"),
    ({"tokenizer__ggml__eos_token_id": len(TOKENS)}, "special tokens beyond its"),
    ({"llama__vocab_size": 7}, "but its model expects 7"),
    ({"llama__attention__head_count": [4, 2]}, "sizes that no Llama has"),
    ({"llama__attention__head_count_kv": 3}, "sizes that no Llama has"),
    ({"llama__rope__dimension_count": 8}, "rotates only part of each head"),
    ({"llama__block_count": 3}, "9 tensors are missing"),
    ({"llama__block_count": 1}, "9 tensors are missing, or have no place in a Llama: blk.1.attn_k.weight"),
    ({"llama__feed_forward_length": 64}, "blk.0.ffn_gate.weight is [96, 64], but the metadata makes it [64, 64]"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_what_would_not_be_converted_exactly_is_refused_and_leaves_no_folder(
    changes: dict[str, Any], reason: str, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    file = write(tmp_path / "model.gguf", tensors_of(llama), metadata(**changes))
    with pytest.raises(GgufError) as refusal:
        convert_gguf(file, tmp_path / "model")
    assert reason in str(refusal.value)
    assert list(tmp_path.iterdir()) == [file]


def test_another_architecture_is_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", tensors_of(llama), metadata(), architecture="gemma2")
    with pytest.raises(GgufError, match="architecture 'gemma2'; only 'llama' is converted"):
        convert_gguf(file, tmp_path / "model")


def test_scaling_factors_that_come_as_a_tensor_are_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    tensors = {**tensors_of(llama), "rope_freqs.weight": np.ones(8, np.float32)}  # as Llama 3.1 and later have them
    file = write(tmp_path / "model.gguf", tensors, metadata())
    with pytest.raises(GgufError, match=r"no place in a Llama: rope_freqs\.weight"):
        convert_gguf(file, tmp_path / "model")


def test_what_is_no_whole_gguf_file_is_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", tensors_of(llama), metadata()).read_bytes()
    reasons = {
        b"": "is not a GGUF file",
        b"PK\x03\x04 a zip archive": "is not a GGUF file",
        b"GGUF": "damaged, unfinished, or of an unknown version",
        whole[:4] + (99).to_bytes(4, "little") + whole[8:]: "unknown version",
        **{whole[: len(whole) * percent // 100]: "damaged, unfinished" for percent in (1, 10, 50, 99)},
    }
    for content, reason in reasons.items():
        (tmp_path / "part.gguf").write_bytes(content)
        with pytest.raises(GgufError, match=reason):
            convert_gguf(tmp_path / "part.gguf", tmp_path / "model")
        assert not (tmp_path / "model").exists()
    with pytest.raises(GgufError, match="there is no file"):
        convert_gguf(tmp_path / "nothing.gguf", tmp_path / "model")


def test_a_folder_that_exists_is_not_touched(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = write(tmp_path / "model.gguf", tensors_of(llama), metadata())
    with pytest.raises(GgufError, match="exists already; delete it"):
        convert_gguf(file, tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_a_conversion_that_a_full_disk_ended_looks_unfinished_and_the_next_one_finishes(
    llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    file, folder = write(tmp_path / "model.gguf", tensors_of(llama), metadata()), tmp_path / "model"
    command = [sys.executable, "-m", "backbones.gguf_folder", str(file), str(folder)]
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *command]  # no file may pass 16 KiB
    failed = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert failed.returncode != 0
    assert not folder.exists()

    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == llama.num_parameters()

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 1
    assert again.stderr.startswith(f"error: {folder} exists already")
