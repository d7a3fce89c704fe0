"""The integration certificate: what passes, what is found at fault, and how long a certificate lasts.

Every fault is planted where a user would plant it: in a model's folder, in a registered spec, in a class of its own.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gang import RankError, run_ranks
from safetensors.torch import load_file, save_file
from small_jobs import curve, entries, make_job

from backbones.causal_lm import CausalLMBackbone
from backbones.random_init import RandomInitBackbone
from backbones.registry import build, get_spec, register
from backbones.spec import BackboneSpec
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.certificate.gang import obtain_certificate
from orchestrator.certificate.record import Certificate, CertificateRequest, Proof, code_digest
from orchestrator.errors import CertificateError
from orchestrator.layout import CellFolder
from orchestrator.parallel import Mesh
from orchestrator.results import read_json
from orchestrator.spec_files.spec import Adaptation, Budget, Data, Recipe

TINY = ("tiny-llama2", "tiny-mistral", "tiny-qwen")
KIT_MODELS = tuple(f"stories260K-{family}" for family in ("llama", "mistral", "qwen2", "phi3", "gemma"))
PROOFS = ["special tokens", "prompt", "architecture", "weights", "rows", "parity", "packing", "overfit"]
ANSWER_APART = (
    "{% for m in messages %}{{ '<s>' if m.role == 'assistant' else '' }}{{ m.content }}"
    "{{ '</s>' if m.role == 'assistant' else '' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class DeafToPositions(RandomInitBackbone):
    """Packed examples run into each other: their positions never reach the model."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return super().forward(*arguments, **{**named, "position_ids": None})


class Louder(RandomInitBackbone):
    """Its logits are not those of the class it says it is."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = super().forward(*arguments, **named)
        output.logits = output.logits * 1.001
        return output


class OddRows(RandomInitBackbone):
    """Its embedding has one row too many."""

    def resize_embeddings(self, *, added: int, may_shrink: bool) -> None:
        super().resize_embeddings(added=added, may_shrink=may_shrink)
        self.llm.resize_token_embeddings(self.tokenizer_rows.total + 1, mean_resizing=False)


class CannotLearn(RandomInitBackbone):
    """Its gradients are a millionth of what they should be, and its update rule has nothing to work with."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = super().forward(*arguments, **named)
        output.logits = output.logits.detach() + 0 * output.logits
        return output


def make_request(spec: BackboneSpec, storage: Path, launch: str = "first", **changes: Any) -> CertificateRequest:
    recipe = Recipe(
        data=Data(train="-", validation="-"),
        budget=Budget(kind="steps", amount=1),
        activation_checkpointing=False,
        adaptation=Adaptation(kind=changes.pop("adaptation", "full")),
    )
    return CertificateRequest(spec, recipe, 1, storage / "certificates", launch, **changes)


def obtain(request: CertificateRequest, launches: int = 1) -> tuple[Certificate, list[Proof], bool]:
    """Runs on every rank: the certificate, the proofs made in the last launch, whether torch draws as before."""
    spec = request.backbone
    if not spec.backbone_id.startswith(("tiny-", "hf:", "fused:")):
        register(spec)
    before = torch.random.get_rng_state()
    for launch in range(launches):
        made: list[Proof] = []
        request = replace(request, launch=f"{request.launch}-{launch}")
        certificate = obtain_certificate(request, Mesh.build(torch.device("cpu")), made.append)
    return certificate, made, torch.equal(before, torch.random.get_rng_state())


def certify(spec: BackboneSpec, storage: Path, world: int = 1, **changes: Any) -> Certificate:
    return run_ranks(world, obtain, make_request(spec, storage, **changes))[0][0]


def outcome(certificate: Certificate) -> dict[str, str]:
    return {proof.name: f"{proof.status} {proof.found}" for proof in certificate.proofs}


def failed(certificate: Certificate) -> list[str]:
    return [proof.name for proof in certificate.proofs if proof.status == "FAILED"]


def spec_of(name: str, **changes: Any) -> BackboneSpec:
    """A registered spec with something changed, under a name of its own."""
    return replace(get_spec("tiny-llama2"), backbone_id=name, **changes)


def model_folder(folder: Path) -> Path:
    """A model as a user brings it, with 1024 tokens and no PAD."""
    backbone = build("tiny-llama2", seed=5)
    backbone.llm.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backbone_id", TINY)
def test_every_tiny_backbone_is_certified_and_draws_nothing_from_torch(backbone_id: str, tmp_path: Path) -> None:
    ranks = run_ranks(2, obtain, make_request(get_spec(backbone_id), tmp_path))
    certificate, made, untouched = ranks[0]
    assert certificate.passed, outcome(certificate)
    assert [proof.name for proof in made] == PROOFS
    assert [rank[0] for rank in ranks] == [certificate, certificate]
    assert untouched
    assert certificate.keys["attention"] == "sdpa"
    assert certificate.model == "the whole model"


@pytest.mark.parametrize("name", KIT_MODELS)
def test_every_kit_model_is_certified_with_the_weights_of_its_checkpoint(name: str, kit: Path, tmp_path: Path) -> None:
    certificate = certify(get_spec(f"hf:{kit / 'models' / name}"), tmp_path)
    assert certificate.passed, outcome(certificate)
    assert outcome(certificate)["weights"].endswith("each equal to the checkpoint's")


@pytest.mark.parametrize("adaptation", ["last_layer", "lora"])
def test_a_certificate_covers_the_adaptation_it_was_made_with(adaptation: str, kit: Path, tmp_path: Path) -> None:
    spec = get_spec(f"hf:{kit / 'models' / 'stories260K-llama'}")
    certificate = certify(spec, tmp_path, world=2, adaptation=adaptation)
    assert certificate.passed, outcome(certificate)
    assert json.loads(certificate.keys["adaptation"])["kind"] == adaptation


def test_a_model_that_exceeds_its_device_is_proved_on_its_first_layers(kit: Path, tmp_path: Path) -> None:
    spec = get_spec(f"hf:{kit / 'models' / 'stories260K-llama'}")
    certificate = certify(spec, tmp_path, world=2, device_gib=0.002)
    assert certificate.passed, outcome(certificate)
    assert certificate.model == "its first 2 layers: the whole exceeds a device"
    assert "5 x LlamaDecoderLayer" in outcome(certificate)["architecture"], "the whole model was laid out"
    assert not list((tmp_path / "certificates").glob("*.model")), "what was written for the proofs is gone"


def test_a_missing_weight_fails_the_proof_of_the_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    certificate = certify(get_spec(f"hf:{folder}"), tmp_path)
    assert failed(certificate) == ["weights"]
    assert "model.layers.1.mlp.up_proj.weight" in outcome(certificate)["weights"]
    assert outcome(certificate)["parity"] == "NOT_RUN not run: 'weights' did not pass"


def test_a_wrong_decoder_layer_class_fails_the_proof_of_the_architecture(tmp_path: Path) -> None:
    spec = spec_of("wrong-layers", decoder_layer_cls="MistralDecoderLayer")
    certificate = certify(spec, tmp_path)
    assert failed(certificate) == ["architecture"]
    assert "MistralDecoderLayer" in outcome(certificate)["architecture"]


def test_another_class_than_the_config_names_fails_the_proof_of_the_architecture(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    spec = replace(
        get_spec(f"hf:{folder}"), backbone_id="wrong-class", llm_cls="MistralForCausalLM", hf_hub_path=str(folder)
    )
    certificate = certify(spec, tmp_path)
    assert failed(certificate) == ["architecture"]
    assert "LlamaForCausalLM" in outcome(certificate)["architecture"]


def test_a_pad_that_is_eos_fails_the_proof_of_the_special_tokens(tmp_path: Path) -> None:
    certificate = certify(spec_of("pad-is-eos", pad_token="</s>"), tmp_path)
    assert failed(certificate) == ["special tokens"]
    assert "</s>" in outcome(certificate)["special tokens"]


def test_a_template_whose_prompt_is_not_what_training_has_fails_the_proof_of_the_prompt(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(ANSWER_APART, encoding="utf-8")
    certificate = certify(get_spec(f"hf:{folder}"), tmp_path)
    assert failed(certificate) == ["prompt"]
    assert "generation prompt" in outcome(certificate)["prompt"]
    with pytest.raises(CertificateError, match=r"the proof 'prompt' failed\. Expected: .* Found: .* Correct the chat"):
        certificate.require()


@pytest.mark.parametrize(
    ("fault", "proof"), [(DeafToPositions, "packing"), (Louder, "parity"), (OddRows, "rows"), (CannotLearn, "overfit")]
)
def test_a_fault_of_a_backbones_own_class_fails_the_proof_of_it(
    fault: type[CausalLMBackbone], proof: str, tmp_path: Path
) -> None:
    spec = spec_of(f"faulty-{fault.__name__}", backbone_cls=f"{__name__}:{fault.__name__}")
    certificate = certify(spec, tmp_path)
    assert proof in failed(certificate), outcome(certificate)
    assert set(failed(certificate)) <= {proof, "overfit"}, outcome(certificate)


def test_a_certificate_is_made_once_and_a_failed_one_again_at_the_next_launch(tmp_path: Path) -> None:
    _, made, _ = run_ranks(1, obtain, make_request(get_spec("tiny-mistral"), tmp_path), 2)[0]
    assert made == []
    _, made, _ = run_ranks(1, obtain, make_request(spec_of("again", pad_token="</s>"), tmp_path), 2)[0]
    assert made[0].status == "FAILED"


def test_a_certificate_lasts_until_the_backbone_or_our_code_changes(tmp_path: Path) -> None:
    plugin = tmp_path / "family.py"
    plugin.write_text("A = 1\n")
    before = code_digest((str(plugin),))
    plugin.write_text("A = 2\n")
    code_digest.cache_clear()
    assert code_digest((str(plugin),)) != before != code_digest()
    folder = model_folder(tmp_path / "model")
    certify(get_spec(f"hf:{folder}"), tmp_path)
    shutil.copytree(folder, tmp_path / "same")
    certify(get_spec(f"hf:{tmp_path / 'same'}"), tmp_path)
    files = tmp_path / "certificates"
    assert len(list(files.glob("*.json"))) == 1, "a copy of the folder is the same backbone"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.1
    os.unlink(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    certify(get_spec(f"hf:{folder}"), tmp_path)
    assert len(list(files.glob("*.json"))) == 2


def train(job: CellJob) -> None:
    run_cell(job, torch.device("cpu"))


def test_a_cell_trains_as_it_would_without_its_certificate_and_makes_it_once(tmp_path: Path) -> None:
    plain = make_job(tmp_path / "plain", workers=2)
    run_ranks(2, train, plain)
    job = make_job(tmp_path / "certified", workers=2)
    job = replace(job, certificate=make_request(job.cell.backbone, tmp_path))
    run_ranks(2, train, job)
    assert curve(job) == curve(plain)
    assert read_json(CellFolder(job.folder).certificate)["backbone_id"] == "tiny-llama2"
    run_ranks(2, train, replace(job, attempt=2))
    proofs = [entry for entry in entries(job, "phase") if "proof" in entry.fields]
    assert [entry.fields["proof"]["name"] for entry in proofs] == PROOFS, "the second attempt repeats none"


def test_a_cell_whose_backbone_fails_a_proof_does_not_train_nor_does_the_next_seed_prove_it_again(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, "tiny-llama2")
    job = replace(job, certificate=make_request(spec_of("tiny-bad", pad_token="</s>"), tmp_path))
    for attempt in (1, 2):
        with pytest.raises(RankError, match="CertificateError: tiny-bad is not certified: the proof 'special tokens'"):
            run_ranks(1, train, replace(job, attempt=attempt))
    proofs = [entry for entry in entries(job, "phase") if "proof" in entry.fields]
    assert len(proofs) == len(PROOFS)
    assert entries(job, "step") == []
