import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_hub import COMMIT, serve
from safetensors.torch import save_file

from backbones import InvalidReferenceError, get_spec
from backbones.reference import hub_errors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 10,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    tensors = {"model.embed_tokens.weight": torch.zeros(10, 8), "model.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_is_described_by_its_config_and_weight_headers(folder: Path) -> None:
    spec = get_spec(f"hf:{folder}")
    assert (spec.family, spec.llm_cls, spec.context_length) == ("llama", "LlamaForCausalLM", 64)
    assert spec.parameters == 80  # buffers do not count
    assert spec.architecture.tied_embeddings  # no lm_head in the file
    assert (spec.architecture.num_kv_heads, spec.architecture.head_dim) == (2, 4)
    assert spec.folder == folder
    assert spec.revision is None


@pytest.mark.parametrize("spelling", ["./model", "../{parent}/model", "{folder}"])
def test_every_spelling_of_a_folder_is_that_folder(
    folder: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).rename(model / name)
    monkeypatch.chdir(folder)
    spec = get_spec("hf:" + spelling.format(parent=folder.name, folder=model))
    assert spec.hf_hub_path == str(model)


def test_the_digest_of_a_folder_follows_every_byte_and_name(folder: Path) -> None:
    before = get_spec(f"hf:{folder}").weights_digest
    (folder / "notes.txt").write_text("not part of the model")
    assert get_spec(f"hf:{folder}").weights_digest == before
    (folder / "tokenizer.json").write_text("{ }")
    assert get_spec(f"hf:{folder}").weights_digest != before


@pytest.mark.parametrize("own", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_is_the_prompt_where_there_is_one(folder: Path, own: str) -> None:
    assert get_spec(f"hf:{folder}").prompt_builder == "PurePromptBuilder"
    (folder / own).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert get_spec(f"hf:{folder}").prompt_builder == "ChatTemplatePromptBuilder"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": None}, "not a causal language model"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "never run"),
        ({"hidden_size": None}, "none of hidden_size"),
    ],
)
def test_a_model_that_cannot_be_trained_here_is_refused_with_the_reason(
    folder: Path, change: dict[str, object], reason: str
) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InvalidReferenceError, match=reason):
        get_spec(f"hf:{folder}")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("model.safetensors", "Pickled weights"),
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
    ],
)
def test_a_folder_without_a_needed_file_is_refused_with_the_reason(folder: Path, missing: str, reason: str) -> None:
    (folder / missing).rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidReferenceError, match=reason):
        get_spec(f"hf:{folder}")


@pytest.mark.parametrize("reference", ["hf:./no-such-folder", "hf:", "hf:a/b/c", "hf:a b"])
def test_a_reference_that_names_nothing_is_an_input_error(reference: str) -> None:
    with pytest.raises(ValueError, match="hf:ORG/NAME"):
        get_spec(reference)


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    with serve(folder) as (address, _):
        yield address


def _resolve(reference: str, endpoint: str, cache: Path, token: str | None = None, offline: bool = False) -> str:
    """What a process of its own says, since the hub's address is read once at import."""
    code = (
        "import backbones\n"
        f"try: spec = backbones.get_spec({reference!r})\n"
        "except backbones.HubError as error: print(error)\n"
        "else: print(spec.revision, spec.parameters, spec.licence, spec.gated, spec.folder)"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
    environment.pop("HF_TOKEN", None)
    if token is not None:
        environment["HF_TOKEN"] = token
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return finished.stdout.strip()


def test_a_hub_model_is_pinned_to_its_commit_and_counted_without_its_weights(hub: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert _resolve("hf:org/ok@main", hub, cache) == f"{COMMIT} 80 mit True None"
    assert not list(cache.rglob("*.safetensors"))
    assert "the weights of org/ok are not in the local cache" in _resolve("hf:org/ok", hub, cache, offline=True)


def test_a_gated_model_names_hf_token_and_the_page(hub: str, tmp_path: Path) -> None:
    message = _resolve("hf:org/gated", hub, tmp_path / "cache")
    assert "org/gated is gated on Hugging Face and HF_TOKEN is not set here" in message
    assert "huggingface.co/org/gated" in message
    assert "this HF_TOKEN has no access" in _resolve("hf:org/gated", hub, tmp_path / "cache", token="hf_x")


def test_a_missing_model_and_an_unreachable_hub_are_hub_errors(hub: str, tmp_path: Path) -> None:
    assert "there is no public model org/absent on the hub" in _resolve("hf:org/absent", hub, tmp_path / "cache")
    assert "the Hugging Face hub could not be read" in _resolve(
        "hf:org/any@main", "http://127.0.0.1:9", tmp_path / "cache"
    )


def test_an_error_in_a_folder_is_not_blamed_on_the_hub() -> None:
    with pytest.raises(OSError, match="disk"), hub_errors("hf:./x", "/absolute/x"):
        raise OSError("disk")
