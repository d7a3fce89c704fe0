"""A gang of workers gets its certificate: the one that is kept, else a new one. No Ray, no MLflow.

Collective: every rank of the process group runs the same lines.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout

from backbones.adaptation import AdaptationError
from backbones.attention import AttentionChoice, AttentionUnavailableError
from backbones.reference import HubError
from backbones.registry import backbone_class
from orchestrator.cell_job import CertificateRequest
from orchestrator.certificate.claims import Claim, claims_of
from orchestrator.certificate.proofs import Finding, NotRunError
from orchestrator.certificate.record import (
    Certificate,
    Proof,
    ProofStatus,
    certificate_file,
    certificate_keys,
    find_certificate,
)
from orchestrator.certificate.subject import Subject, usable_memory
from orchestrator.errors import CancelledError
from orchestrator.hardware import GIB, device_name, forget_peak_memory
from orchestrator.layout import CellFolder
from orchestrator.parallel import Mesh, is_peer_lost
from orchestrator.results import write_json
from orchestrator.spec_files.spec import Recipe
from orchestrator.tracking.recorder import Recorder
from orchestrator.training.model.sharding import COMPUTE_DTYPE

TURN_S = 1.0  # between two looks at whether another gang has finished the same certificate
# What says nothing about a backbone: faults of the machine or the network, and a wish that does not fit it.
PASSING = (torch.OutOfMemoryError, HubError, AdaptationError, AttentionUnavailableError)

Announce = Callable[[Proof], None]


def require_certificate(
    request: CertificateRequest, mesh: Mesh, folder: Path, recorder: Recorder, is_unwanted: Callable[[], bool]
) -> Certificate:
    """The certificate that a gang must have before it trains: each proof is recorded as it ends.

    A copy goes to `folder`. Random generators are left as they were. Raises CertificateError, which names the proof
    that failed, and CancelledError once the main rank finds that the proofs are unwanted.
    """

    def announce(proof: Proof) -> None:
        recorder.phase("certifying", proof=asdict(proof))

    certificate = obtain_certificate(request, mesh, announce, is_unwanted)
    if mesh.is_main:
        write_json(CellFolder(folder).certificate, asdict(certificate))
    certificate.require()
    return certificate


def obtain_certificate(
    request: CertificateRequest, mesh: Mesh, announce: Announce, is_unwanted: Callable[[], bool] = lambda: False
) -> Certificate:
    """The certificate in storage if it may be used, else a new one, which is stored whether it passed or not.

    One gang makes it; others that need the same one at the same time wait. Between two proofs, and two looks at whether
    the others are done, the main rank asks whether it is unwanted by now: then all ranks raise CancelledError.
    """
    attention = _resolve_attention(request)
    file = certificate_file(request, certificate_keys(request, attention.kernel, mesh.device.type))
    lock = FileLock(file.with_suffix(".lock"))
    if mesh.is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            # Ranks meet at every look, so that a long wait is no silence that the process group would take for death.
            answer: tuple[bool, Certificate | None] = (False, None)
            if mesh.is_main and _acquired(lock):
                answer = (True, find_certificate(file, request.launch))
            is_ours, found = mesh.from_main(answer)
            if found is not None:
                return found
            if is_ours:
                break
            _require_wanted(mesh, is_unwanted)
        # The ranks differ in the times they took.
        made = mesh.from_main(_make(request, attention, mesh, file, announce, is_unwanted))
        if mesh.is_main:
            write_json(file, asdict(made))
        return made
    finally:
        lock.release()


def _make(
    request: CertificateRequest,
    attention: AttentionChoice,
    mesh: Mesh,
    file: Path,
    announce: Announce,
    is_unwanted: Callable[[], bool],
) -> Certificate:
    device = mesh.device
    subject = Subject(
        spec=request.backbone,
        recipe=_proof_recipe(request.recipe, attention),
        mesh=mesh,
        work_folder=file.with_suffix(".model"),
        memory=usable_memory(mesh) if request.device_gib is None else request.device_gib * GIB,
    )
    gpus = [device] if device.type == "cuda" else []
    proofs: list[Proof] = []
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(0)
            for claim in claims_of(request.backbone):
                _require_wanted(mesh, is_unwanted)
                proofs.append(_prove(claim, subject, proofs))
                announce(proofs[-1])
        model = subject.model_name
    finally:
        subject.close()
        forget_peak_memory(device)
    return Certificate(
        backbone_id=request.backbone.backbone_id,
        keys=certificate_keys(request, attention.kernel, mesh.device.type),
        proofs=proofs,
        model=model,
        workers=mesh.dims.world,
        device=device_name(device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        launch=request.launch,
    )


def _require_wanted(mesh: Mesh, is_unwanted: Callable[[], bool]) -> None:
    """Collective, so that no rank begins a proof which the others leave. Raises CancelledError."""
    if mesh.from_main(mesh.is_main and is_unwanted()):
        raise CancelledError("stopped between two proofs")


def _prove(claim: Claim, subject: Subject, before: list[Proof]) -> Proof:
    """Makes one proof. The ranks agree on its outcome: the first that did not find what was expected speaks."""
    started = time.perf_counter()
    passed = {proof.name for proof in before if proof.status is ProofStatus.PASSED}
    lacking = [name for name in claim.needs if name not in passed]
    outcome = (ProofStatus.NOT_RUN, f"not run: '{lacking[0]}' did not pass") if lacking else _look(claim, subject)
    outcomes = subject.mesh.gathered(outcome)
    status, found = next((one for one in outcomes if one[0] is not ProofStatus.PASSED), outcomes[0])
    expected = claim.expected.format(tolerance=subject.tolerance, precision=subject.recipe.precision)
    return Proof(claim.name, status, expected, found, claim.remedy, time.perf_counter() - started)


def _look(claim: Claim, subject: Subject) -> tuple[ProofStatus, str]:
    try:
        finding: Finding = claim.prove(subject)
    except NotRunError as reason:
        return ProofStatus.NOT_RUN, str(reason)
    except PASSING:
        raise
    except Exception as error:  # whatever a backbone's own code, template or files raise is what was found
        if is_peer_lost(error):
            raise
        return ProofStatus.FAILED, f"{type(error).__name__}: {error}"
    return (ProofStatus.PASSED if finding.holds else ProofStatus.FAILED), finding.found


def _resolve_attention(request: CertificateRequest) -> AttentionChoice:
    """The attention kernel that these workers would train with."""
    spec, dtype = request.backbone, COMPUTE_DTYPE[request.recipe.precision]
    llm_cls = getattr(transformers, spec.llm_cls, None)
    own_class: Any = backbone_class(spec)  # its module may have to make its config known to transformers
    config = None
    if spec.folder is not None and (spec.folder / "config.json").is_file():
        config = transformers.AutoConfig.from_pretrained(spec.folder, local_files_only=True)
        config = config.get_text_config() if spec.fusion is not None else config
    found: AttentionChoice = own_class.find_attention(request.recipe.attention, dtype, llm_cls, config)
    return found


def _proof_recipe(recipe: Recipe, attention: AttentionChoice) -> Recipe:
    """As the cell would train, but in fp32, where equality means something; flash kernels have none.

    Layers are not compiled: proofs look at rows of every length.
    """
    precision = "bf16" if attention.is_half_precision_only else "fp32"
    changes = {"attention": attention.kernel, "precision": precision, "sequence_length": 512, "compile": "none"}
    return recipe.model_copy(update=changes)


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=TURN_S)
    except Timeout:
        return False
    return True
