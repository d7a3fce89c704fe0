"""Every registered family is certified as far as a small random model of its class and a real tokenizer can show."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gang import run_ranks
from small_models import FAMILY_REPRESENTATIVES, make_small_folder, small_spec

from backbones.registry import get_spec, register
from orchestrator.cell_job import CertificateRequest
from orchestrator.certificate.gang import obtain_certificate
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe

pytestmark = pytest.mark.e2e
PROOFS = ["special tokens", "prompt", "architecture", "weights", "rows", "parity", "packing", "overfit"]


def certify(family: str, folder: Path) -> dict[str, str]:
    """On every rank: each proof, as its status and what was found."""
    known, sizes = get_spec(FAMILY_REPRESENTATIVES[family][0]), get_spec(f"hf:{folder}")
    small = replace(known, architecture=sizes.architecture, parameters=sizes.parameters)
    spec = register(small_spec(small, f"small-{family}", folder))
    recipe = Recipe.model_validate(
        {"data": {"train": "-", "validation": "-"}, "budget": {"kind": "steps", "amount": 1}, "precision": "fp32"}
    )
    request = CertificateRequest(spec, recipe, replicas=1, folder=folder / "certificates", launch="test")
    certificate = obtain_certificate(request, Mesh.build(torch.device("cpu")), lambda proof: None)
    return {proof.name: f"{proof.status}: {proof.found}" for proof in certificate.proofs}


@pytest.mark.parametrize("family", FAMILY_REPRESENTATIVES)
def test_a_family_proves_what_a_small_model_of_its_class_can_prove(family: str, kit: Path, tmp_path: Path) -> None:
    backbone_id, tokenizer = FAMILY_REPRESENTATIVES[family]
    folder = make_small_folder(get_spec(backbone_id), tmp_path / family, kit / "tokenizers" / tokenizer)

    proofs = run_ranks(2, certify, family, folder)[0]

    assert list(proofs) == PROOFS
    assert {name: text for name, text in proofs.items() if not text.startswith("PASSED")} == {}
