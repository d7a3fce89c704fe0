"""`backbone certify`: a plan of one cell without training; its proofs are shown as they end, kept, told to MLflow."""

import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from backbones.registry import BackboneSpec
from jobs.cluster.ray_cluster import demand_of, find_missing_hardware, require_joinable_address
from jobs.driver.attempts import History
from jobs.driver.cells import CellRunner
from jobs.driver.conclusion import UPLOAD_LIMIT_S
from jobs.driver.interruption import interruption
from jobs.driver.launch import command_line
from jobs.driver.leases import hold_leases
from jobs.driver.names import default_owner
from jobs.queue.rows import CellRequest, JobRequest
from jobs.report.certificate import render_certificate
from orchestrator.attempt.gangs import Gangs
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
from orchestrator.results import CellResult, CellStatus, read_json
from orchestrator.spec_files.spec import Budget, Data, Placement, Policy, Recipe, Tracking
from orchestrator.tracking.run import TrackedRun, without_password
from orchestrator.tracking.spool import read_from
from orchestrator.tracking.writer import RunWriter

LOOK_S = 0.2
PREDICTED_S = 3600.0  # how long the queue expects proofs to take, until it has seen such
WIDEST = 110  # characters of what was found; the page has all of it
STOPPING = "stopping after this proof; interrupt again to stop at once"
# Proofs have no checkpoint: whoever preempted them would lose all of them.
POLICY = Policy(preemptible=False)


@dataclass(frozen=True)
class Certification:
    """A plan of one cell, which is certified and not trained: what a runner asks of a plan's cells."""

    request: CertificateRequest
    cell: Cell

    def folder(self, cell: Cell) -> Path:
        """Its folder goes when it is over: what stays is the certificate."""
        return Storage(self.request.folder.parent).certification(
            backbone_slug(self.request.backbone), self.request.launch
        )

    def find_finished(self, cell: Cell) -> CellResult | None:
        """Every launch asks anew; the workers find a certificate that is kept."""
        return None

    def make(self, cell: Cell, attempt: int, left_s: float) -> CellJob:
        """The job of an attempt; `left_s` is what is left of the policy's timeout."""
        return CellJob(
            cell=cell,
            attempt=attempt,
            folder=self.folder(cell),
            prepared=None,
            selection_file="",
            flops_per_token=0.0,
            deadline=time.time() + left_s,
            certificate=self.request,
            plugins=self.request.plugins,
        )

    def job_request(self) -> JobRequest:
        """What it asks of the queue. Every launch is a job of its own."""
        request, placement = self.request, self.cell.placement
        identity = backbone_identity(request.backbone)
        likeness = content_hash(["certificate", identity, placement.model_dump(mode="json")])
        return JobRequest(
            job_id=f"certificate-{backbone_slug(request.backbone)}-{request.launch[:12]}",
            kind="certificate",
            owner=default_owner(),
            priority=POLICY.priority,
            preemptible=POLICY.preemptible,
            storage=str(request.folder.parent),
            cells=(CellRequest(self.cell.cell_id, demand_of(placement), PREDICTED_S, likeness),),
        )


def plan_certification(
    spec: BackboneSpec, recipe: Recipe, placement: Placement, storage: Path, plugins: tuple[str, ...] = ()
) -> Certification:
    """Plans the proofs of a backbone as workers of this recipe and placement would train it."""
    launch = uuid.uuid4().hex
    cell = Cell(
        cell_id=f"proofs-{launch[:12]}",
        backbone=spec,
        seed=0,
        recipe=recipe,
        placement=placement,
        micro_batch_size=1,
        train_digest="",
        validation_digest="",
    )
    folder = Storage(storage).certificates
    return Certification(CertificateRequest(spec, recipe, placement.replicas, folder, launch, plugins), cell)


def certify(plan: Certification, console: Console) -> Certificate:
    """Makes or finds the certificate of a backbone, shows it, keeps it in the storage and tells MLflow.

    Whether it passed is for the caller to ask. Raises CertificateError when the proofs could not be made.
    """
    request, workers = plan.request, plan.cell.placement.most
    noun = "1 worker" if workers == 1 else f"{workers} workers"
    console.print(f"certifying {request.backbone.backbone_id} on {noun}", highlight=False, soft_wrap=True)
    certificate, shown = _run(plan, console)
    if not shown:
        console.print(f"nothing changed since it was certified, {certificate.created}", highlight=False, soft_wrap=True)
        for proof in certificate.proofs:
            _print(console, proof)
    file = certificate_file(request, certificate.keys)
    page = file.with_suffix(".html")
    page.write_text(render_certificate(asdict(certificate)), encoding="utf-8")
    _track(certificate, file, page, request.folder.parent, console)
    console.print(f"proved on {certificate.model}, on {certificate.device}", highlight=False, soft_wrap=True)
    console.print(f"certificate: {page}", highlight=False, soft_wrap=True)
    return certificate


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


def _run(plan: Certification, console: Console) -> tuple[Certificate, int]:
    """The certificate, and how many of its proofs were shown while they were made: all, or none."""
    cell, folder = plan.cell, plan.folder(plan.cell)
    table = _Table(console, folder)
    require_joinable_address()
    try:
        with interruption(console) as received, hold_leases(cell.placement, plan.job_request()) as leases:
            with Gangs() as gangs, table.following():
                runner = CellRunner(plan, POLICY, (table,), table.say, leases, gangs.run_attempt)
                with received.answered_by(runner.stop, STOPPING):
                    (result,) = runner.run([cell])
            outcome = CellFolder(folder).certificate
            leases.finish(int(result.status is not CellStatus.SUCCEEDED))
            if outcome.exists():
                return certificate_from_json(read_json(outcome)), table.shown
            raise _unfinished(plan, result, leases.directives.stop, received.number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished(plan: Certification, result: CellResult, stopped: str, signal_number: int | None) -> CertificateError:
    if result.status is not CellStatus.CANCELLED:
        name = plan.request.backbone.backbone_id
        return CertificateError(f"the proofs of {name} could not be made: {result.failure}")
    error = CertificateError(f"the proofs were not finished: {stopped or result.failure}")
    if signal_number is not None:
        error.exit_code = 128 + signal_number
    return error


class _Table:
    """Shows the proofs of a cell, one row each, as its workers write them to its spool."""

    def __init__(self, console: Console, folder: Path):
        self._console, self._folder = console, folder
        self.shown = 0  # of the newest attempt

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def report(self, cell: Cell, status: CellStatus, attempt: int) -> None:
        """Proofs that lost their workers begin anew."""
        if status is CellStatus.RUNNING and attempt > 1:
            self.say(f"beginning anew: {History(self._folder).reasons[attempt - 2]}")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Shows each proof of the spool as it is written."""
        done = threading.Event()

        def follow() -> None:
            offset, last, attempt = 0, False, 0
            while not last:
                last = done.wait(LOOK_S)  # what was written before the end is read after it
                for entry, end in read_from(CellFolder(self._folder).spool, offset):
                    offset = end
                    if entry.attempt != attempt:
                        attempt, self.shown = entry.attempt, 0
                    if (written := entry.fields.get("proof")) is not None:
                        self.shown += 1
                        _print(self._console, Proof(**{**written, "status": ProofStatus(written["status"])}))

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
