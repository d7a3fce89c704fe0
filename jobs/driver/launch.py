"""One job from its plan to its conclusion: connect, prepare, run the cells, conclude."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from jobs.cluster.ray_cluster import is_remote
from jobs.driver.attempts import cancelled_result
from jobs.driver.cell_jobs import CellJobs, export_request, find_finished, find_infeasible
from jobs.driver.cells import CellRunner
from jobs.driver.conclusion import UPLOAD_LIMIT_INTERRUPTED_S, Outcome, conclude
from jobs.driver.interruption import interrupt, interruption
from jobs.driver.leases import Leases, hold_leases
from jobs.driver.locks import locked_cells
from jobs.driver.preparation import Preparation, find_preparation, prepare_data
from jobs.driver.progress import Progress
from jobs.driver.requests import job_request
from jobs.driver.rounds import Rounds, ids_of
from jobs.driver.takeover.adoption import Adopter
from jobs.driver.takeover.works import note_finished
from jobs.tracking.runs import Tracking
from orchestrator.attempt.gangs import Gangs
from orchestrator.faults import VARIABLE, parse_faults
from orchestrator.planning.plan import Cell, Plan, narrow
from orchestrator.results import CellResult
from orchestrator.tracking.sender import driver_of

STOPPING = "stopping at the next checkpoint; interrupt again to stop at once"


def launch(plan: Plan, console: Console, certify: bool, keep_finished: bool = False) -> Outcome:
    """Runs whatever of the plan is not finished yet, and concludes. Blocks until all cells are terminal.

    With `certify`, a cell trains only under its backbone's certificate, which its own workers make where none is kept.
    What earlier comparisons trained on the same data is taken over; with `keep_finished` also, marked, what learned
    from examples that another candidate drops now. Infeasible cells are reported, not run. Raises AlreadyRunningError,
    ResourcesError, and InputError for a fault that nobody could mean.
    """
    faults = parse_faults(os.environ.get(VARIABLE, ""))
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    with ExitStack() as held, interruption(console) as received:
        held.enter_context(driver_of(plan.folder))
        rounds = Rounds(plan, find_infeasible(plan))
        if not is_remote():
            held.enter_context(_locked(plan, rounds.advance()))
            rounds = Rounds(plan, rounds.infeasible)  # some may have finished while the locks were taken
        cells = rounds.advance()
        plan.files.spec.write_text(plan.source.text, encoding="utf-8")
        _announce(rounds, console, cells)
        first = narrow(plan, {*rounds.results, *ids_of(cells)})
        tracking = Tracking(first, command_line(), export_request(plan), children=rounds.results)
        for result in rounds.results.values():
            tracking.finish_child(result)
        leases: Leases | None = None
        try:
            if cells or find_preparation(plan) is None:
                console.print("connecting to Ray" if is_remote() else "starting Ray")
                leases = held.enter_context(hold_leases(plan.job.placement, job_request(plan, cells)))
                is_shared = leases.counterpart.is_shared
                if is_remote() and not is_shared:
                    held.enter_context(_locked(plan, cells))
                tracking.start()

                def begin(further: Sequence[Cell]) -> None:
                    say(rounds.reason(further))
                    if not is_shared:
                        held.enter_context(_locked(plan, further))

                try:
                    with received.answered_by(interrupt, "stopping"):
                        preparation = _prepare(plan, console)
                        adopter = Adopter(plan, preparation, certify, keep_finished, say, is_shared)
                        asked, cells = cells, take_over(adopter, rounds, cells, begin)
                except KeyboardInterrupt:  # a signal before anything trained
                    rounds.take(find_finished(plan, one) or _cancelled(plan, one) for one in cells)
                else:
                    jobs = CellJobs(plan, preparation, certify, faults)
                    tracking.follow(plan, [*asked, *cells], rounds.results)
                    if cells != asked:
                        leases.extend(job_request(plan, cells))
                    with Gangs() as gangs:
                        while cells:
                            progress = Progress(console, [(cell, plan.cell_folder(cell)) for cell in cells])
                            witnesses = (tracking, progress)
                            runner = CellRunner(
                                *(jobs, plan.job.policy, witnesses, progress.say, leases, gangs.run_attempt),
                                ended=tracking.finish_child,
                            )
                            with progress.running(), received.answered_by(runner.stop, STOPPING):
                                rounds.take(runner.run(cells))
                            cells = [] if received.number else rounds.advance()
                            if cells:
                                begin(cells)
                                cells = take_over(adopter, rounds, cells, begin)
                                tracking.follow(plan, cells, rounds.results)
                                leases.extend(job_request(plan, cells))
        except BaseException:
            tracking.abort(UPLOAD_LIMIT_INTERRUPTED_S)
            raise
        tracking.follow(plan, [cell for cell in plan.cells if cell.cell_id in rounds.results], rounds.results)
        if plan.job.rule is not None and (known := find_preparation(plan)) is not None:
            note_finished(plan, known, rounds.ordered)
        with received.answered_by(tracking.expedite, "leaving the upload to the next launch", also_earlier=False):
            outcome = conclude(plan, console, rounds.ordered, tracking, received.number, command_line())
        if leases is not None:
            leases.finish(outcome.exit_code)
        return outcome


def command_line() -> str:
    """The command that repeats this launch."""
    program = Path(sys.argv[0])
    words = [f"python -m jobs.{program.stem}" if program.suffix == ".py" else program.name, *sys.argv[1:]]
    return " ".join([words[0], *map(shlex.quote, words[1:])])


@contextmanager
def _locked(plan: Plan, cells: Sequence[Cell]) -> Iterator[None]:
    """Holds the locks of the cells that may have to run. Which of them finished meanwhile is looked up afterwards."""
    with locked_cells([plan.cell_folder(cell) for cell in cells]):
        yield


def take_over(
    adopter: Adopter, rounds: Rounds, cells: list[Cell], begin: Callable[[Sequence[Cell]], None]
) -> list[Cell]:
    """What is left to train, of these cells or of the rounds behind them, which `begin`."""
    while cells:
        rounds.take(adopter.adopt(cells))
        if left := [cell for cell in cells if cell.cell_id not in rounds.results]:
            return left
        if cells := rounds.advance():
            begin(cells)
    return []


def _cancelled(plan: Plan, cell: Cell) -> CellResult:
    return cancelled_result(cell, plan.cell_folder(cell))


def _announce(rounds: Rounds, console: Console, cells: Sequence[Cell]) -> None:
    plan, finished = rounds.plan, len(rounds.results) - len(rounds.infeasible)
    done = f", {finished} already finished" if finished else ""
    total = len(rounds.results) + len(cells)
    number = "1 cell" if total == 1 else f"{total} cells"
    console.print(f"{plan.job_id}: {number}{done}; results in {plan.folder}", highlight=False, soft_wrap=True)
    if not cells:
        hint = "delete its folder under cells/ to run it anew"
        console.print(f"nothing to run: every cell is finished ({hint})", highlight=False, soft_wrap=True)


def _prepare(plan: Plan, console: Console) -> Preparation:
    backbones = "1 backbone" if len(plan.backbones) == 1 else f"{len(plan.backbones)} backbones"
    console.print(f"tokenizing {len(plan.train)} training examples for {backbones}")
    return prepare_data(plan, partial(console.print, highlight=False, soft_wrap=True))
