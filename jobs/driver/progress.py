"""What a person sees while cells run: a live table in a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Cell
from orchestrator.results import CellStatus
from orchestrator.tracking.spool import EntryKind, read_from

REFRESH_S = 0.5
PLAIN_INTERVAL_S = 10.0


@dataclass
class CellView:
    """The last known state of a cell, fed by its spool."""

    cell: Cell
    folder: Path
    status: CellStatus = CellStatus.QUEUED
    attempt: int = 0
    phase: str = ""
    step: int = 0
    share: float = 0.0
    loss: float | None = None
    val_bits_per_byte: float | None = None
    scored_step: int = 0  # whose score that is
    proofs: int = 0  # made of a certificate by the newest attempt
    tokens_per_second: float | None = None
    offset: int = 0
    printed_at: float = 0.0
    printed: str = ""  # what the last line told of
    notices: int = 0

    def refresh(self) -> list[str]:
        """Reads what is new in the spool; returns sentences worth a line of their own."""
        notices = []
        for entry, offset in read_from(CellFolder(self.folder).spool, self.offset):
            self.offset = offset
            fields = entry.fields
            if entry.kind is EntryKind.STEP:
                self.step, self.share, self.loss = fields["step"], fields["progress"], fields["loss"]
                self.tokens_per_second = fields["tokens_per_second_per_device"]
            elif entry.kind is EntryKind.EVALUATION:
                self.val_bits_per_byte, self.scored_step = fields["val_bits_per_byte"], fields["step"]
            elif entry.kind is EntryKind.PHASE:
                self.phase = fields["phase"]
                self.proofs = 0 if self.phase == "starting" else self.proofs + ("proof" in fields)
                if self.phase == "resumed":
                    self.step = fields["step"]
                if self.phase in ("resumed", "rejected") and entry.attempt == self.attempt:
                    notices.append(f"resumed at step {fields['step']}" if "step" in fields else fields["reason"])
        return notices

    @property
    def doing(self) -> str:
        """The phase in words."""
        if self.phase != "certifying":
            return self.phase or "starting"
        return f"certifying, {self.proofs} proofs made" if self.proofs else "certifying: proofs before the first step"

    def score(self, form: str, unit: str = "") -> str:
        """The newest score, with its step where others were made since."""
        is_old = self.val_bits_per_byte is not None and self.scored_step < self.step
        return _number(self.val_bits_per_byte, form) + unit + (f" at step {self.scored_step}" if is_old else "")


class Progress:
    """Shows every cell of a job; `report` is called by the runner, the rest comes from the spools."""

    def __init__(self, console: Console, cells: list[tuple[Cell, Path]]):
        self._console = console
        self._views = {cell.cell_id: CellView(cell, folder) for cell, folder in cells}
        for view in self._views.values():
            view.refresh()
            view.share, view.step = 0.0, 0
        self._live: Live | None = None
        self._lock = threading.Lock()

    def report(self, cell: Cell, status: CellStatus, attempt: int) -> None:
        """A cell changed its status or began an attempt."""
        view = self._views[cell.cell_id]
        view.status, view.attempt = status, attempt
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self._line(f"{cell.cell_id}: {status.value.lower()}{again}{self._outcome(view) if status.is_terminal else ''}")

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._line(sentence)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps the view fresh while the cells run."""
        done = threading.Event()
        thread = threading.Thread(target=self._loop, args=(done,), name="progress", daemon=True)
        thread.start()
        try:
            if not self._console.is_terminal:
                yield
                return
            with Live(self._table(), console=self._console, refresh_per_second=4) as self._live:
                yield
        finally:
            done.set()
            thread.join()
            self._live = None

    def _loop(self, done: threading.Event) -> None:
        while not done.wait(REFRESH_S):
            self._refresh()
        self._refresh()

    def _refresh(self) -> None:
        for view in self._views.values():
            if view.status is CellStatus.QUEUED:
                continue
            for notice in view.refresh():
                self._line(f"{view.cell.cell_id}: {notice}")
            self._print_plain(view)
        if self._live is not None:
            self._live.update(self._table())

    def _print_plain(self, view: CellView) -> None:
        now = time.monotonic()
        text = view.doing
        if view.phase == "training" and view.step:
            score = f"{_scored_on(view.cell)} {view.score('.3f', ' bits/byte')}"
            text = f"{view.share:4.0%}  step {view.step}  loss {_number(view.loss, '.3f')}  {score}"
        moved = text != view.printed and view.status is CellStatus.RUNNING
        if self._live is None and not self._console.is_terminal and moved and now - view.printed_at > PLAIN_INTERVAL_S:
            view.printed_at, view.printed = now, text
            self._line(f"{view.cell.cell_id}: {text}")

    def _outcome(self, view: CellView) -> str:
        view.refresh()
        score = f", {_scored_on(view.cell)} {_number(view.val_bits_per_byte, '.4f')} bits/byte"
        return f" after {view.step} steps{score if view.status is CellStatus.SUCCEEDED else ''}"

    def _line(self, text: str) -> None:
        with self._lock:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("cell", "status", "", "step", "loss", "bits/byte", "tokens/s/device"):
            table.add_column(
                name, justify="right" if name in ("step", "loss", "bits/byte", "tokens/s/device") else "left"
            )
        for view in self._views.values():
            table.add_row(
                view.cell.cell_id,
                _shown_status(view),
                ProgressBar(total=1.0, completed=view.share, width=20),
                str(view.step),
                _number(view.loss, ".3f"),
                view.score(".4f"),
                _number(view.tokens_per_second, ",.0f"),
            )
        return table


def _scored_on(cell: Cell) -> str:
    return "tune split" if cell.is_trial else "held-out"


def _shown_status(view: CellView) -> str:
    if view.status is CellStatus.RUNNING:
        return view.doing + (f" #{view.attempt}" if view.attempt > 1 else "")
    return view.status.value.lower()


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
