"""Cells that need no training: a cell of an earlier comparison did the same work on the same examples.

The other candidates of a comparison are part of a cell's id, since their tokenizers may drop examples; so a comparison
that gets a candidate has new cells. Where nothing was dropped that the finished ones learned from, their results are
copied into the folders of the new ones, the result last: until it is there, a cell is not finished.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.driver.cell_jobs import find_finished
from jobs.driver.locks import locked_cells
from jobs.driver.preparation import Preparation
from jobs.driver.takeover.copies import (
    UnsoundError,
    copy_outcome,
    discard_half_adopted,
    discard_outcome,
    find_sound_result,
    forget_tracked,
    read_sound,
)
from jobs.driver.takeover.works import Learned, find_learned, find_works, note_work, prompt_hash
from orchestrator.data.parity import find_droppers, load_selection
from orchestrator.errors import AlreadyRunningError
from orchestrator.layout import CellFolder, Storage
from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import Adoption, CellResult, find_adoption, save_adoption, save_cell_result

KEEP_FINISHED = "--keep-finished"


@dataclass(frozen=True)
class Offer:
    """A finished cell of the same work, and in what it differs from the cell that wants its result."""

    source: CellFolder
    result: CellResult
    learned: Learned
    more: np.ndarray  # training examples that it learned from, and the other would not
    fewer: int  # those that the other would learn from, and it did not
    scored_more: int  # held-out items that it was scored on, and the other would not be

    @property
    def is_same(self) -> bool:
        """Whether it learned from what the other would learn from."""
        return not len(self.more) and not self.fewer

    @property
    def difference(self) -> tuple[bytes, int]:
        """Equal for cells whose offers differ from them in the same examples."""
        return self.more.tobytes(), self.fewer


@dataclass(frozen=True)
class Adopter:
    """Takes results over for the cells of a plan. Whoever calls it holds their locks, unless the cells are shared."""

    plan: Plan
    preparation: Preparation
    certify: bool  # whether only what was trained under a certificate counts
    keep_finished: bool  # also what learned from other examples, marked
    say: Callable[[str], None]
    is_shared: bool  # other drivers may train the same cells now
    _selections: dict[str, tuple[Learned, np.ndarray]] = field(default_factory=dict)

    def adopt(self, cells: Sequence[Cell]) -> list[CellResult]:
        """The stored results of those that need no training; what the others learn from is noted.

        Says how many were taken over, and what keeps finished cells from it.
        """
        found: list[CellResult] = []
        same: list[tuple[Cell, Offer]] = []
        marked: list[tuple[Cell, Offer]] = []
        passed_over: list[tuple[Cell, Offer]] = []
        for cell in cells:
            folder = self.plan.cell_folder(cell)
            with suppress(AlreadyRunningError), locked_cells([folder] if self.is_shared else []):
                if (finished := find_finished(self.plan, cell)) is not None:  # by another driver, meanwhile
                    found.append(finished)
                    continue
                discard_half_adopted(CellFolder(folder))
                if self.plan.job.rule is None:  # speed is measured anew, and an export needs the weights
                    continue
                offer, result = self._take_best(cell)
                if result is None:
                    note_work(self._storage, cell, self._selection(cell)[0])
                elif find_finished(self.plan, cell) is not None:  # else it has yet to be asked its tasks
                    found.append(result)
                if offer is not None:
                    chosen = passed_over if result is None else same if offer.is_same else marked
                    chosen.append((cell, offer))
        self._tell(len(cells), len(same), marked, passed_over)
        return found

    @property
    def _storage(self) -> Storage:
        return Storage(self.plan.storage)

    def _take_best(self, cell: Cell) -> tuple[Offer | None, CellResult | None]:
        """What was taken over, with its result; else the nearest of what was not, if there is any."""
        passed_over: Offer | None = None
        for offer in self._offers(cell):
            if not (offer.is_same or self.keep_finished):
                passed_over = passed_over or offer
                continue
            try:
                return offer, self._take(cell, offer)
            except (OSError, UnsoundError) as error:
                discard_half_adopted(self._storage.cell(cell.cell_id))
                self._say_unsound(offer.source, error)
        return passed_over, None

    def _offers(self, cell: Cell) -> Iterator[Offer]:
        """What may be taken over, the same first, then what differs least."""
        own, works, others = self._selection(cell)[0], find_works(self._storage, cell.work), []
        for cell_id in sorted(works, key=lambda cell_id: (works[cell_id] != own.digest, cell_id)):
            if cell_id == cell.cell_id:
                continue
            learned = own if works[cell_id] == own.digest else find_learned(self._storage, works[cell_id])
            offer = None if learned is None else self._find_offer(cell, self._storage.cell(cell_id), learned)
            if offer is not None and offer.is_same:
                yield offer
            elif offer is not None:
                others.append(offer)
        yield from sorted(others, key=lambda offer: len(offer.more) + offer.fewer)

    def _find_offer(self, cell: Cell, source: CellFolder, learned: Learned) -> Offer | None:
        """None unless it finished, and may stand for what the cell would measure, but for what it learned from."""
        own, scored = self._selection(cell)
        try:
            sound = find_sound_result(source)
            if sound is None:
                return None
            result, items = sound[0], sound[1].items
            self._require(source, result, cell, not_scored=len(np.setdiff1d(scored, items)))
        except UnsoundError as error:
            self._say_unsound(source, error)
            return None
        more, fewer = np.array([], np.int64), 0
        if learned is not own:
            more = np.setdiff1d(learned.kept, own.kept)
            fewer = len(np.setdiff1d(own.kept, learned.kept))
        return Offer(source, result, learned, more, fewer, scored_more=len(items) - len(scored))

    def _require(self, source: CellFolder, result: CellResult, cell: Cell, not_scored: int) -> None:
        """Raises UnsoundError where a whole result is none for this comparison."""
        contract = {} if result.measurement is None else result.measurement.contract
        if contract.get("prompt_hash") != prompt_hash(self.preparation, cell):
            raise UnsoundError("its tokenizer or its prompt format was another one")
        if self.certify and not source.certificate.exists():
            raise UnsoundError("it was trained without a certificate, which this launch asks for")
        if not_scored:
            raise UnsoundError(f"it was not scored on {not_scored} of the held-out items that are scored here")

    def _selection(self, cell: Cell) -> tuple[Learned, np.ndarray]:
        """What it learns from here, and the held-out items that are scored."""
        file = self.preparation.selection_file(cell)
        if file not in self._selections:
            kept, scored = load_selection(file)
            self._selections[file] = Learned(kept), scored
        return self._selections[file]

    def _take(self, cell: Cell, offer: Offer) -> CellResult:
        """Copies what an offer left behind, and stores its result. Raises UnsoundError and OSError."""
        target, earlier = self._storage.cell(cell.cell_id), find_adoption(offer.source.path)
        trained = offer.result.cell_id if earlier is None else earlier.adopted_from
        forget_tracked(target)
        target.result.unlink(missing_ok=True)
        save_adoption(target.path, Adoption(trained, len(offer.more), offer.fewer, offer.scored_more))
        discard_outcome(target)
        copy_outcome(offer.source, target)
        measurement, _ = read_sound(target)
        if measurement != offer.result.measurement:
            raise UnsoundError("it changed while it was copied")
        note_work(self._storage, cell, offer.learned)
        result = replace(
            offer.result,
            cell_id=cell.cell_id,
            backbone_id=cell.backbone.backbone_id,
            mlflow_run_id=None,
            folder=str(target.path),
        )
        save_cell_result(target.path, result)
        return result

    def _say_unsound(self, source: CellFolder, error: Exception) -> None:
        self.say(f"{source.path.name} is finished, but its result cannot be taken over: {error}")

    def _tell(
        self, asked: int, same: int, marked: list[tuple[Cell, Offer]], passed_over: list[tuple[Cell, Offer]]
    ) -> None:
        if same:
            verb = "is" if same == 1 else "are"
            self.say(f"{same} of {_cells(asked)} {verb} taken over from earlier comparisons, which saw the same data")
        for offer, cells in _grouped(marked):
            verb = "is" if len(cells) == 1 else "are"
            their = f"their {_cells(len(cells))} {verb} taken over all the same, marked"
            self.say(f"{self._difference(offer, cells)}; {their}")
        for offer, cells in _grouped(passed_over):
            verb = "trains" if len(cells) == 1 else "train"
            self.say(
                f"{self._difference(offer, cells)}, so their {_cells(len(cells))} {verb} anew; to keep them, marked, "
                f"run again with {KEEP_FINISHED}"
            )

    def _difference(self, offer: Offer, cells: Sequence[Cell]) -> str:
        """In what a comparison differs from those whose cells are finished, and which candidate is why."""
        names = ", ".join(dict.fromkeys(cell.backbone.backbone_id for cell in cells))
        parts = []
        if len(offer.more):
            length = self.plan.job.recipe.sequence_length
            droppers = find_droppers([*self.preparation.prepared.values()], length, offer.more)
            verb = "drops" if len(droppers) == 1 else "drop"
            examples = _examples(len(offer.more))
            who = ", ".join(droppers)
            parts.append(f"{who} {verb} {examples} that the finished cells of {names} learned from")
        if offer.fewer:
            verb = "is" if offer.fewer == 1 else "are"
            examples = _examples(offer.fewer)
            parts.append(f"{examples} that the finished cells of {names} did not learn from {verb} kept now")
        return ", and ".join(parts)


def _grouped(offers: Sequence[tuple[Cell, Offer]]) -> Iterator[tuple[Offer, list[Cell]]]:
    """The cells whose offers differ from them in the same examples, with one of these offers."""
    groups: dict[tuple[bytes, int], list[tuple[Cell, Offer]]] = {}
    for cell, offer in offers:
        groups.setdefault(offer.difference, []).append((cell, offer))
    for group in groups.values():
        yield group[0][1], [cell for cell, _ in group]


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"


def _examples(number: int) -> str:
    return "1 training example" if number == 1 else f"{number} training examples"
