"""`backbone certify`: the proofs on Ray Train workers, shown as they end, kept, and told to MLflow."""

import math
import shutil
import signal
import threading
import uuid
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from backbones.registry import BackboneSpec
from jobs.cluster.ray_cluster import demand_of, find_missing_hardware, require_joinable_address
from jobs.driver.conclusion import UPLOAD_LIMIT_S
from jobs.driver.launch import command_line
from jobs.driver.leases import Leases, hold_leases
from jobs.driver.names import default_owner
from jobs.queue.rows import CellRequest, JobRequest
from jobs.report.certificate import render_certificate
from orchestrator.attempt.failure import Failure
from orchestrator.attempt.worker import run_attempt
from orchestrator.cell_job import CellJob, CertificateRequest
from orchestrator.certificate.record import (
    Certificate,
    Proof,
    ProofStatus,
    certificate_file,
    certificate_from_json,
)
from orchestrator.errors import CertificateError, InputError
from orchestrator.identity import backbone_identity, backbone_slug, content_hash
from orchestrator.layout import CellFolder, Storage, certificate_run
from orchestrator.planning.plan import Cell
from orchestrator.planning.preflight import default_tracking_uri
from orchestrator.results import CellStatus, read_json
from orchestrator.spec_files.spec import Budget, Data, Placement, Recipe, Tracking
from orchestrator.tracking.run import TrackedRun, without_password
from orchestrator.tracking.spool import read_from
from orchestrator.tracking.writer import RunWriter

LOOK_S = 0.2
PREDICTED_S = 3600.0  # how long the queue expects proofs to take, until it has seen such
WIDEST = 110  # characters of what was found; the page has all of it


def certify(
    spec: BackboneSpec, recipe: Recipe, placement: Placement, storage: Path, plugins: tuple[str, ...], console: Console
) -> Certificate:
    """Makes or finds the certificate of a backbone, shows it, keeps it in `storage` and tells MLflow.

    Whether it passed is for the caller to ask. Raises CertificateError when the proofs could not be made.
    """
    launch, folder = uuid.uuid4().hex, Storage(storage).certificates
    request = CertificateRequest(spec, recipe, placement.replicas, folder, launch, plugins)
    job = certify_job(request, placement)
    shown: list[Proof] = []

    def show(proof: Proof) -> None:
        shown.append(proof)
        _print(console, proof)

    workers = "1 worker" if placement.workers == 1 else f"{placement.workers} workers"
    console.print(f"certifying {spec.backbone_id} on {workers}", highlight=False, soft_wrap=True)
    certificate = _run(job, request, placement, show, console)
    if not shown:
        console.print(f"nothing changed since it was certified, {certificate.created}", highlight=False, soft_wrap=True)
        for proof in certificate.proofs:
            show(proof)
    file = certificate_file(request, certificate.keys)
    page = file.with_suffix(".html")
    page.write_text(render_certificate(asdict(certificate)), encoding="utf-8")
    _track(certificate, file, page, storage, console)
    console.print(f"proved on {certificate.model}, on {certificate.device}", highlight=False, soft_wrap=True)
    console.print(f"certificate: {page}", highlight=False, soft_wrap=True)
    return certificate


def certify_job(request: CertificateRequest, placement: Placement) -> CellJob:
    """A cell that is certified and not trained; its folder goes when it is over."""
    cell = Cell(
        cell_id=f"proofs-{request.launch[:12]}",
        backbone=request.backbone,
        seed=0,
        recipe=request.recipe,
        placement=placement,
        micro_batch_size=1,
        train_digest="",
        validation_digest="",
    )
    return CellJob(
        cell=cell,
        attempt=1,
        folder=Storage(request.folder.parent).certification(backbone_slug(request.backbone), request.launch),
        prepared=None,
        selection_file="",
        flops_per_token=0.0,
        deadline=math.inf,
        certificate=request,
        plugins=request.plugins,
    )


def make_recipe(attention: str, adaptation: str) -> Recipe:
    """A recipe with these two; the proofs use no data and no budget. Raises InputError for what does not exist."""
    fields: dict[str, Any] = {"attention": attention, "adaptation": {"kind": adaptation}}
    try:
        return Recipe(data=Data(train="-", validation="-"), budget=Budget(kind="steps", amount=1), **fields)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"--{problem['loc'][0]} is '{problem['input']}': {problem['msg']}") from None


def make_placement(workers: int, gpu: bool) -> Placement:
    """Workers with a GPU each or with none. Raises InputError where this machine lacks the GPUs."""
    placement = Placement(workers=workers, gpus_per_worker=int(gpu))
    if missing := find_missing_hardware(placement):
        raise InputError(missing)
    return placement


def _run(
    job: CellJob, request: CertificateRequest, placement: Placement, show: Callable[[Proof], None], console: Console
) -> Certificate:
    outcome = CellFolder(job.folder).certificate
    try:
        require_joinable_address()
        with hold_leases(placement, lease_request(request, placement)) as leases:
            lease = leases.wait_for_one(lambda text: console.print(text, highlight=False, markup=False))
            with _following(job.spool_folder, show), _stopped_when_told(leases):
                failure = run_attempt(job, placement, leases.nodes_of(lease))
            status = CellStatus.SUCCEEDED if outcome.exists() else CellStatus.FAILED
            leases.release(lease.lease_id, lease.cell_id, status)
            leases.finish(int(failure is not None))
        if not outcome.exists():
            raise CertificateError(_unfinished(job, failure))
        return certificate_from_json(read_json(outcome))
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)


@contextmanager
def _stopped_when_told(leases: Leases) -> Iterator[None]:
    """Somebody may stop or cancel the job in the queue. Raises CertificateError then."""

    why = ""

    def look() -> None:
        nonlocal why
        directives = leases.directives
        if why := directives.stop or next((lease.stop_reason for lease in directives.leases if lease.stop_kind), ""):
            leases.changed = ignore  # once
            interrupt_main()

    def ignore() -> None:
        """Nothing is left to be done."""

    handler = signal.getsignal(signal.SIGINT)  # Ray Train leaves its own behind
    leases.changed = look
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray Train answers SIGINT by an exit without a word
        if not why:
            raise KeyboardInterrupt from None
        raise CertificateError(f"the proofs were not finished: {why}") from None
    finally:
        leases.changed = ignore
        signal.signal(signal.SIGINT, handler)


def lease_request(request: CertificateRequest, placement: Placement) -> JobRequest:
    """One gang that cannot be preempted: proofs have no checkpoint. Every launch is a job of its own."""
    slug = backbone_slug(request.backbone)
    likeness = content_hash(["certificate", backbone_identity(request.backbone), placement.model_dump(mode="json")])
    return JobRequest(
        job_id=f"certificate-{slug}-{request.launch[:12]}",
        kind="certificate",
        owner=default_owner(),
        priority=0,
        preemptible=False,
        storage=str(request.folder.parent),
        cells=(CellRequest(f"proofs-{request.launch[:12]}", demand_of(placement), PREDICTED_S, likeness),),
    )


def _unfinished(job: CellJob, failure: Failure | None) -> str:
    reason = "no reason was recorded" if failure is None else failure.message
    return f"the proofs of {job.cell.backbone.backbone_id} could not be made: {reason}"


@contextmanager
def _following(spool: Path, show: Callable[[Proof], None]) -> Iterator[None]:
    """Shows each proof of a spool as it is written."""
    done = threading.Event()

    def follow() -> None:
        offset, last = 0, False
        while not last:
            last = done.wait(LOOK_S)  # what was written before the end is read after it
            for entry, end in read_from(spool, offset):
                offset = end
                written = entry.fields["proof"]
                show(Proof(**{**written, "status": ProofStatus(written["status"])}))

    thread = threading.Thread(target=follow, name="proofs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _print(console: Console, proof: Proof) -> None:
    """One row of the table; rows come one by one, so their widths are fixed."""
    found = proof.found.splitlines()[0] if proof.found else ""
    found = found if len(found) <= WIDEST else f"{found[: WIDEST - 1]}…"
    status = proof.status.lower().replace("_", " ")
    line = f"  {proof.name:<15} {status:<8} {proof.time_s:6.2f} s  {found}"
    styles = {ProofStatus.FAILED: "red", ProofStatus.NOT_RUN: "dim"}
    console.print(line, style=styles.get(proof.status), highlight=False, markup=False, soft_wrap=True)


def _track(certificate: Certificate, file: Path, page: Path, storage: Path, console: Console) -> None:
    """Logs keys, certificate and page as a run of their own; sent once, however often the certificate is shown."""
    uri = default_tracking_uri(storage)
    run = TrackedRun(
        name=f"certificate-{file.stem}",
        state_file=certificate_run(file, certificate.launch),
        tags={
            "role": "certificate",
            "backbone_id": certificate.backbone_id,
            "certified": str(certificate.passed).lower(),
            "mlflow.source.name": command_line(),
            "mlflow.source.type": "JOB",
            **{f"proof.{proof.name.replace(' ', '_')}": str(proof.status) for proof in certificate.proofs},
        },
        params=certificate.keys,
        artifacts=(file, page),
    )
    writer = RunWriter(uri, Tracking().experiment, Storage(storage).mlflow_artifacts)
    writer.track(run)
    writer.finish(run, "FINISHED" if certificate.passed else "FAILED")
    writer.start()
    unsent = writer.close(UPLOAD_LIMIT_S)
    for problem in writer.problems:
        console.print(f"MLflow refused {problem}", highlight=False, markup=False, soft_wrap=True)
    if unsent:
        hint = "run the same command again once it answers"
        console.print(
            f"MLflow at {without_password(uri)} does not have the certificate yet; {hint}",
            highlight=False,
            soft_wrap=True,
        )
