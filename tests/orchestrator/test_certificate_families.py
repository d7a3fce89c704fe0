"""Every registered family is certified as far as a small random model of its class and a real tokenizer can show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gang import run_ranks
from small_models import FAMILY_REPRESENTATIVES, make_small_folder, small_spec

from backbones.registry import get_spec, register
from orchestrator.certificate.gang import obtain_certificate
from orchestrator.certificate.record import CertificateRequest
from orchestrator.spec import Recipe

pytestmark = pytest.mark.e2e
PROOFS = ["special tokens", "prompt", "architecture", "weights", "rows", "parity", "packing", "overfit"]


def certify_all(folders: dict[str, Path], storage: Path) -> dict[str, dict[str, str]]:
    """On every rank: each proof of each family, as its status and what was found."""
    return {family: certify(family, folder, storage) for family, folder in folders.items()}


def certify(family: str, folder: Path, storage: Path) -> dict[str, Any]:
    spec = register(small_spec(get_spec(FAMILY_REPRESENTATIVES[family][0]), f"small-{family}", folder))
    recipe = Recipe.model_validate(
        {"data": {"train": "-", "validation": "-"}, "budget": {"kind": "steps", "amount": 1}, "precision": "fp32"}
    )
    request = CertificateRequest(spec, recipe, replicas=1, folder=storage, launch="test")
    certificate = obtain_certificate(request, torch.device("cpu"), lambda proof: None)
    return {proof.name: f"{proof.status}: {proof.found}" for proof in certificate.proofs}


@pytest.fixture(scope="module")
def proofs(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("certified")
    folders = {
        family: make_small_folder(get_spec(backbone_id), root / family, kit / "tokenizers" / tokenizer)
        for family, (backbone_id, tokenizer) in FAMILY_REPRESENTATIVES.items()
    }
    return run_ranks(2, certify_all, folders, root / "certificates")[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILY_REPRESENTATIVES)
def test_a_family_proves_what_a_small_model_of_its_class_can_prove(
    proofs: dict[str, dict[str, str]], family: str
) -> None:
    assert list(proofs[family]) == PROOFS
    assert {name: text for name, text in proofs[family].items() if not text.startswith("PASSED")} == {}
