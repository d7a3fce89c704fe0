"""What a certificate says, what it is valid for, and where it is kept. No torch, ray, mlflow."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator import layout
from orchestrator.cell_job import CertificateRequest
from orchestrator.errors import CertificateError
from orchestrator.identity import backbone_identity, backbone_slug, content_hash
from orchestrator.layout import CellFolder
from orchestrator.results import read_json

_ROOT, _OURS = Path(__file__).parents[2], ("backbones", "orchestrator")


class ProofStatus(StrEnum):
    """How a proof ended."""

    PASSED = "PASSED"  # what was found is what was expected
    FAILED = "FAILED"  # it is not, or looking raised an error
    NOT_RUN = "NOT_RUN"  # a proof that it builds on did not pass


@dataclass(frozen=True)
class Proof:
    """One claim about a backbone and what was found. `remedy` says what to do where the two differ."""

    name: str
    status: ProofStatus
    expected: str
    found: str
    remedy: str
    time_s: float


@dataclass(frozen=True)
class Certificate:
    """The proofs of one backbone, valid as long as none of the `keys` changes.

    `model` says which model parity and overfit were proved on: the whole one, or its first layers where the whole one
    exceeds a device.
    """

    backbone_id: str
    keys: dict[str, str]
    proofs: list[Proof]
    model: str
    workers: int
    device: str
    created: str  # ISO 8601, UTC
    launch: str  # the job whose workers made it

    @property
    def passed(self) -> bool:
        return all(proof.status is ProofStatus.PASSED for proof in self.proofs)

    def require(self) -> None:
        """Raises CertificateError, naming the proof, unless every proof passed."""
        failed = next((proof for proof in self.proofs if proof.status is ProofStatus.FAILED), None)
        if failed is not None:
            raise CertificateError(
                f"{self.backbone_id} is not certified: the proof '{failed.name}' failed. Expected: {failed.expected}. "
                f"Found: {failed.found.rstrip('.')}. {failed.remedy}"
            )


def certificate_keys(request: CertificateRequest, kernel: str, device: str) -> dict[str, str]:
    """Everything a certificate depends on; `kernel` is the resolved attention, `device` the kind of device."""
    spec = request.backbone
    try:
        own = version("backbone-orchestrator")
    except PackageNotFoundError:  # a working directory that Ray copied; the digest tells versions apart
        own = "not installed"
    return {
        "backbone": backbone_identity(spec),
        "revision": spec.revision or "none",
        "torch": version("torch"),
        "transformers": version("transformers"),
        "backbone_orchestrator": own,
        "code": code_digest((spec.backbone_cls.partition(":")[0], *request.plugins)),
        "attention": kernel,
        "adaptation": request.recipe.adaptation.model_dump_json(exclude_none=True),
        "device": device,
    }


@cache
def code_digest(modules: tuple[str, ...] = ()) -> str:
    """SHA-256 over the source of `backbones` and `orchestrator`, and of `modules`: names, or files of plugins."""
    named = {str(path.relative_to(_ROOT)): path for name in _OURS for path in (_ROOT / name).rglob("*.py")}
    for module in modules:
        found = None if module.endswith(".py") else find_spec(module)
        path = Path(module) if found is None else Path(found.origin or "")
        if path.is_file() and path not in named.values():
            named[module] = path
    digest = hashlib.sha256()
    for name, path in sorted(named.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def certificate_file(request: CertificateRequest, keys: dict[str, str]) -> Path:
    """Where the certificate of these keys is kept."""
    return layout.certificate_file(request.folder, backbone_slug(request.backbone), content_hash(keys))


def find_certificate(file: Path, launch: str) -> Certificate | None:
    """The certificate in `file` if it may be used: one that passed, or one that failed in this very launch."""
    if not file.exists():
        return None
    certificate = certificate_from_json(read_json(file))
    return certificate if certificate.passed or certificate.launch == launch else None


def certificate_from_json(document: dict[str, Any]) -> Certificate:
    """The inverse of `dataclasses.asdict` for a `Certificate`."""
    proofs = [Proof(**{**proof, "status": ProofStatus(proof["status"])}) for proof in document["proofs"]]
    return Certificate(**{**document, "proofs": proofs})


def find_cell_certificate(cell_folder: Path) -> dict[str, Any] | None:
    """The certificate that a cell was trained under, as plain data, or None."""
    file = CellFolder(cell_folder).certificate
    return read_json(file) if file.exists() else None
