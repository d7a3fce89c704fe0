"""An append-only file of facts per cell, shared by all its attempts. No torch, ray, mlflow.

It is the truth about steps: what it holds is sent to MLflow unchanged, as often as needed, so an attempt that repeats
steps after a restart does not write them again, and a replay sends identical rows, which MLflow stores once.
"""

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.layout import SPOOL_FILE
from orchestrator.results import EvaluationPoint, RolloutPoint, StepMetrics

EVALUATION_METRICS = ("val_bits_per_byte", "val_loss")
ROLLOUT_METRICS = {"rollout/success": "success", "rollout/return": "total_reward", "rollout/length": "length"}
STREAMED_METRICS = (*(field.name for field in fields(StepMetrics) if field.name != "step"), *EVALUATION_METRICS)


class EntryKind(StrEnum):
    """What a line tells of."""

    STEP = "step"
    EVALUATION = "evaluation"
    ROLLOUTS = "rollouts"
    PHASE = "phase"


@dataclass(frozen=True)
class Entry:
    """One line: a step, an evaluation, episodes that were played, or the phase an attempt has entered."""

    kind: EntryKind
    time_ms: int
    attempt: int
    fields: dict[str, Any]

    @property
    def key(self) -> tuple[str, int, str | None]:
        return self.kind, self.fields["step"], self.fields.get("digest")

    @property
    def metrics(self) -> dict[str, float]:
        """What a tracker shows of it, at its step; nothing of a phase."""
        if self.kind is EntryKind.ROLLOUTS:
            return {name: float(self.fields[key]) for name, key in ROLLOUT_METRICS.items()}
        shown = {"step": [key for key in self.fields if key != "step"], "evaluation": EVALUATION_METRICS, "phase": ()}
        return {key: float(self.fields[key]) for key in shown[self.kind]}


class SpoolWriter:
    """Appends entries; a step, evaluation or rollout that an earlier attempt already wrote is skipped."""

    def __init__(self, folder: Path, attempt: int):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SPOOL_FILE
        _drop_torn_line(file)
        self._seen = {entry.key for entry in read_spool(folder) if entry.kind is not EntryKind.PHASE}
        self._attempt = attempt
        # A line is one write of a few hundred bytes to an O_APPEND file: a killed worker leaves whole lines, or one
        # torn line at the end. The page cache outlives the process, so no fsync is needed on the way of a step.
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def step(self, metrics: StepMetrics) -> None:
        """Appends a step unless it is there already."""
        self._append(EntryKind.STEP, asdict(metrics))

    def evaluation(self, point: EvaluationPoint) -> None:
        """Appends an evaluation unless it is there already."""
        self._append(EntryKind.EVALUATION, asdict(point))

    def rollouts(self, point: RolloutPoint) -> None:
        """Appends what episodes came to, unless those of the same request at the same step are there already."""
        self._append(EntryKind.ROLLOUTS, asdict(point))

    def phase(self, name: str, **details: Any) -> None:
        """Appends what the attempt does now, for the progress view."""
        self._append(EntryKind.PHASE, {"phase": name, **details})

    def close(self) -> None:
        """Makes the file durable and closes it."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _append(self, kind: EntryKind, fields: dict[str, Any]) -> None:
        entry = Entry(kind, time.time_ns() // 1_000_000, self._attempt, fields)
        if kind is not EntryKind.PHASE:
            if entry.key in self._seen:
                return
            self._seen.add(entry.key)
        line = (json.dumps(asdict(entry)) + "\n").encode()
        if os.write(self._descriptor, line) < len(line):  # the next line must not follow half of this one
            raise OSError(
                errno.ENOSPC, "no room for a whole line; free some space, then run the same command", SPOOL_FILE
            )


def note_phase(folder: Path, attempt: int, name: str, **details: Any) -> None:
    """Appends a phase from outside the attempt: the driver says when it asked for the workers."""
    writer = SpoolWriter(folder, attempt)
    writer.phase(name, **details)
    writer.close()


def read_spool(folder: Path) -> Iterator[Entry]:
    """Every complete entry so far."""
    yield from (entry for entry, _ in read_from(folder, 0))


def read_from(folder: Path, offset: int) -> Iterator[tuple[Entry, int]]:
    """Complete entries from a byte offset, each with the offset behind it; a line being written is left for later."""
    file = folder / SPOOL_FILE
    if not file.exists():
        return
    with open(file, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            fields = json.loads(line)
            yield Entry(**{**fields, "kind": EntryKind(fields["kind"])}), offset


def with_warm_up(entries: Iterable[Entry], warm_up: int) -> Iterator[tuple[Entry, bool]]:
    """Every entry, and whether it is a step that speed is measured by: not among the first of its attempt."""
    made: Counter[int] = Counter()
    for entry in entries:
        made[entry.attempt] += entry.kind is EntryKind.STEP
        yield entry, entry.kind is EntryKind.STEP and made[entry.attempt] > warm_up


def _drop_torn_line(file: Path) -> None:
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
