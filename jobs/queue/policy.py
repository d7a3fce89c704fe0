"""(now, nodes, what waits, what runs, rules, usage) -> what to grant and what to stop, each with its reason. Pure.

Over 300 lines: one round of decisions, whose steps share what is free.

`backbone simulate` calls `decide`; so can whoever grants real leases. Rules: docs/queue.md. Backfill is EASY
(Lifka 1995, doi 10.1007/3-540-60153-8_35): one reservation, for the first cell that waits, which nobody may delay.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.formats import duration
from jobs.queue.gangs import Demand, Node, Placement, Room
from jobs.queue.model import Grant, Lease, QueuedCell, Settings, Stop, StopKind, Usage, WaitingLine
from jobs.queue.owners import Owners
from jobs.queue.reasons import Waiting, WaitingReason

NEVER_FITS = "never fits: not even on the empty cluster"


@dataclass
class Reservation:
    """Promised to the first that waits. `room`: all that is free then; `spare`: how many workers too many fit."""

    cell: QueuedCell
    start_s: float
    room: Room
    spare: int


@dataclass(frozen=True)
class Decisions:
    """What to do now. `reserved_for` goes into the next call; `look_again_s`: when time alone changes something."""

    grants: tuple[Grant, ...]
    stops: tuple[Stop, ...]
    reserved_for: str | None
    reserved_start_s: float | None
    look_again_s: float | None
    _round: "_Round"

    def why_waiting(self, cell: QueuedCell) -> Waiting:
        """Why a cell that was not granted waits."""
        return self._round.why_waiting(cell)


def decide(
    now_s: float,
    nodes: Sequence[Node],
    waiting: WaitingLine,
    leases: Iterable[Lease],
    settings: Settings,
    usage: Mapping[str, Usage],
    reserved_for: str | None = None,
) -> Decisions:
    """What to grant and to stop now. Changes none of its arguments; the same arguments give the same decisions.

    `reserved_for`: the cell that the last call promised its nodes to. It stays first among those of its level, so that
    shares which move to and fro cannot keep it waiting.
    """
    return _Round(now_s, nodes, waiting, leases, settings, usage).decisions(waiting.find(reserved_for))


@dataclass
class _Tried:
    """What backfill found so far: gangs that fit nowhere, and gangs that fit but, unless short, would delay."""

    unplaceable: set[Demand]
    delaying: set[Demand]
    window_s: float  # what ends within it is out of the reservation's way

    def excludes(self, cell: QueuedCell) -> bool:
        return cell.demand in self.unplaceable or (cell.demand in self.delaying and cell.predicted_s > self.window_s)


class _Round:
    """One decision in the making."""

    def __init__(
        self,
        now_s: float,
        nodes: Sequence[Node],
        waiting: WaitingLine,
        leases: Iterable[Lease],
        settings: Settings,
        usage: Mapping[str, Usage],
    ):
        self.now_s, self.waiting, self.settings = now_s, waiting, settings
        self.leases = sorted(leases, key=lambda lease: (lease.expected_end_s(now_s), lease.cell.cell_id))
        self.room = Room(nodes)
        for lease in self.leases:
            self.room.take(lease.cell.demand, lease.placement)
        self.owners = Owners(now_s, self.leases, settings, usage)
        self.grants: dict[str, Grant] = {}
        self.stops: list[Stop] = []
        self.never_fit: set[str] = set()
        self.reserved: Reservation | None = None

    def decisions(self, reserved_for: QueuedCell | None) -> Decisions:
        self._stop_owners_without_budget()
        self.reserved = self._grant_in_order(reserved_for)
        if self.reserved is not None:
            self.reserved = self._preempt_for(self.reserved)
            if self.settings.backfill:
                self._backfill(self.reserved)
        head = self.reserved
        return Decisions(
            tuple(self.grants.values()),
            tuple(self.stops),
            head.cell.cell_id if head else None,
            head.start_s if head else None,
            self.owners.next_budget_end_s(),
            self,
        )

    def why_waiting(self, cell: QueuedCell) -> Waiting:
        if rule := self.owners.held_back(cell):
            return Waiting(rule, WaitingReason.OWNER_RULE)
        if cell.cell_id in self.never_fit or self.reserved is None:
            return Waiting(f"{cell.demand} {NEVER_FITS}", WaitingReason.NEVER_FITS)
        span, first = duration(self.reserved.start_s - self.now_s), self.reserved.cell
        if cell.cell_id == first.cell_id:
            return Waiting(f"first in line; by prediction {cell.demand} fits in {span}", WaitingReason.FIRST_IN_LINE)
        if cell.gpus > self.room.gpus:
            free = f"needs {cell.gpus} GPUs, {self.room.gpus} are free; {first.cell_id} is first in line"
            return Waiting(free, WaitingReason.NO_ROOM)
        if self.room.place(cell.demand) is None:
            apart = f"no nodes have room for {cell.demand} together; {first.cell_id} is first in line"
            return Waiting(apart, WaitingReason.NO_ROOM)
        if not self.settings.backfill:
            return Waiting(f"waits behind {first.cell_id}", WaitingReason.BEHIND_FIRST)
        late = f"would delay {first.cell_id}, which by prediction starts in {span}"
        return Waiting(late, WaitingReason.BEHIND_FIRST)

    # --- grants in order ---

    def _grant_in_order(self, reserved_for: QueuedCell | None) -> Reservation | None:
        """Grants from the front until a cell does not fit: that one gets the reservation."""
        for cell in self._in_order(reserved_for):
            if self.owners.held_back(cell):
                self.owners.keep_quota_for(cell, self._owner_releases)
            elif (placement := self.room.place(cell.demand)) is not None:
                self._grant(cell, placement, self._turn(cell))
            elif (reservation := self._reserve(cell)) is not None:
                self.owners.keep_quota_for(cell, self._owner_releases, reservation.start_s)
                return reservation
            else:
                self.never_fit.add(cell.cell_id)
        return None

    def _in_order(self, reserved_for: QueuedCell | None) -> Iterator[QueuedCell]:
        """All cells that wait, in their order, as shares stand when each one's turn comes."""
        for level, owners in self.waiting.levels():
            if reserved_for is not None and self.settings.level(reserved_for) == level:
                yield reserved_for
            shares = [(self.owners.share(owner), owner) for owner in owners]
            heapq.heapify(shares)
            merged = {owner: heapq.merge(*kinds.values(), key=self.waiting.rank) for owner, kinds in owners.items()}
            while shares:
                share, owner = shares[0]
                if share != (current := self.owners.share(owner)):  # it was granted something meanwhile
                    heapq.heapreplace(shares, (current, owner))
                elif (cell := next(merged[owner], None)) is None:
                    heapq.heappop(shares)
                elif cell is not reserved_for:
                    yield cell

    def _grant(self, cell: QueuedCell, placement: Placement, reason: str) -> None:
        where = f"{len(placement)} nodes" if len(placement) > 1 else f"node {placement[0][0]}"
        self.grants[cell.cell_id] = Grant(cell, placement, f"{reason}; on {where}")
        self.room.take(cell.demand, placement)
        self.owners.charge(cell)

    def _turn(self, cell: QueuedCell) -> str:
        if self.settings.order == "fifo":
            return "first in the order of submission"
        waited = self.settings.windows_waited(cell, self.now_s)
        aged = f" ({cell.priority} and {waited} for waiting)" if waited else ""
        share = f"share of {cell.owner} {self.owners.share(cell.owner):.1f} GPUs per weight"
        return f"its turn: effective priority {cell.priority + waited}{aged}, {share}"

    # --- the reservation, and what may pass it ---

    def _releases(self) -> list[tuple[float, QueuedCell, Placement]]:
        """(when, what, where) of all that runs or was granted just now, in order of time by prediction."""
        running = [(lease.expected_end_s(self.now_s), lease.cell, lease.placement) for lease in self.leases]
        granted = [(self.now_s + one.cell.predicted_s, one.cell, one.placement) for one in self.grants.values()]
        return sorted(running + granted, key=lambda one: one[0])

    def _owner_releases(self) -> list[tuple[float, str, int]]:
        return [(end_s, cell.owner, cell.gpus) for end_s, cell, _ in self._releases()]

    def _reserve(self, cell: QueuedCell) -> Reservation | None:
        """When `cell` fits by prediction; None if it does not even once all is free."""
        room, start_s = self.room.copy(), self.now_s
        spare = room.count(cell.demand) - cell.demand.workers
        for end_s, other, placement in self._releases():
            # Whatever ends at the same moment is free then too, so it belongs in `room`.
            if spare >= 0 and end_s > start_s:
                break
            spare += room.give(other.demand, placement, counted=cell.demand)
            start_s = end_s
        return Reservation(cell, start_s, room, spare) if spare >= 0 else None

    def _backfill(self, reserved: Reservation) -> None:
        """Grants what ends before the reservation, or leaves room for it, until nothing more does."""
        tried = _Tried({reserved.cell.demand}, set(), reserved.start_s - self.now_s)
        while any(self._try(cell, reserved, tried) for cell in self._candidates(tried)):
            # What is free has changed: a gang may now go to other nodes and delay nobody. So have the owners' shares.
            # `unplaceable` stays, because grants never make room.
            tried.delaying.clear()

    def _candidates(self, tried: "_Tried") -> Iterator[QueuedCell]:
        """The cells that may fit, in their order; a kind that was found not to fit is passed over as a whole."""
        for _, owners in self.waiting.levels():
            for owner in sorted(owners, key=lambda one: (self.owners.share(one), one)):
                kinds = [cells for demand, cells in owners[owner].items() if demand.gpus <= self.room.gpus]
                heads = [(self.waiting.rank(cells[0]), cells, 0) for cells in kinds]
                heapq.heapify(heads)
                while heads:
                    _, cells, position = heads[0]
                    cell = cells[position]
                    if not tried.excludes(cell) and cell.cell_id not in self.grants:
                        yield cell
                    following = self._following(cells, position, tried)
                    if following is None:
                        heapq.heappop(heads)
                    else:
                        heapq.heapreplace(heads, (self.waiting.rank(cells[following]), cells, following))

    def _following(self, cells: list[QueuedCell], position: int, tried: "_Tried") -> int | None:
        """Where to go on in a list of cells of one kind; None when no later one can fit."""
        demand, position = cells[position].demand, position + 1
        if demand in tried.unplaceable or position == len(cells):
            return None
        if demand in tried.delaying and self.settings.order == "priority":  # longest first: go to the short ones
            position = bisect_left(cells, -tried.window_s, lo=position, key=lambda cell: -cell.predicted_s)
        return position if position < len(cells) else None

    def _try(self, cell: QueuedCell, reserved: Reservation, tried: "_Tried") -> bool:
        """Grants a cell if it fits and leaves the reservation alone."""
        if self.owners.held_back(cell):
            self.owners.keep_quota_for(cell, self._owner_releases)
            return False
        placement = self.room.place(cell.demand)
        if placement is None:
            tried.unplaceable.add(cell.demand)
            return False
        outlasts = cell.predicted_s > tried.window_s
        if outlasts:
            # What a gang costs the reservation shows only once it is booked there.
            lost = reserved.room.take(cell.demand, placement, counted=reserved.cell.demand)
            if lost > reserved.spare:
                reserved.room.give(cell.demand, placement)
                tried.delaying.add(cell.demand)
                return False
            reserved.spare -= lost
        how = f"leaves room for {reserved.cell.cell_id}" if outlasts else f"ends before {reserved.cell.cell_id} starts"
        self._grant(cell, placement, f"backfill: by prediction it {how} in {duration(tried.window_s)}")
        return True

    # --- stops ---

    def _preempt_for(self, reserved: Reservation) -> Reservation:
        """Asks the fewest and least important to stop, where the head then starts earlier than it would anyway."""
        head, stopped_s = reserved.cell, self.now_s + self.settings.checkpoint_s
        victims = [lease for lease in self.leases if self._may_preempt(head, lease)]
        if not victims or reserved.start_s <= stopped_s:
            return reserved
        room = self.room.copy()
        for end_s, cell, placement in self._releases():
            if end_s <= stopped_s:
                room.give(cell.demand, placement)
        fitting, chosen = room.count(head.demand), []
        for lease in sorted(victims, key=lambda one: (one.cell.priority, -one.granted_s, one.cell.cell_id)):
            # What ends by then anyway is in `room` already: to stop it would gain nothing.
            if lease.expected_end_s(self.now_s) > stopped_s and fitting < head.demand.workers:
                fitting += room.give(lease.cell.demand, lease.placement, counted=head.demand)
                chosen.append(lease)
        if fitting < head.demand.workers:
            return reserved
        wait = duration(reserved.start_s - self.now_s)
        for lease in reversed(chosen):  # the last one was needed; earlier ones may stand on the wrong nodes
            lost = room.take(lease.cell.demand, lease.placement, counted=head.demand)
            if fitting - lost >= head.demand.workers:
                fitting -= lost
                continue
            room.give(lease.cell.demand, lease.placement)
            why = f"preempted for {head.cell_id}, priority {head.priority} over {lease.cell.priority}"
            self._stop(lease, Stop(lease.cell.cell_id, StopKind.PREEMPTED, f"{why}, which would wait {wait} otherwise"))
        # Anew, because the leases that were asked to stop end earlier now.
        return self._reserve(head) or reserved

    def _may_preempt(self, head: QueuedCell, lease: Lease) -> bool:
        """Lower in class, and, once it waits again, behind `head`: or the two would stop each other in turns."""
        return (
            self.settings.preemption
            and self.settings.order == "priority"
            and lease.cell.preemptible
            and lease.stops_by_s is None
            and lease.cell.priority < head.priority
            and self.settings.level(lease.released(self.now_s, 0.0)) < self.settings.level(head)
        )

    def _stop_owners_without_budget(self) -> None:
        for lease in list(self.leases):
            if lease.stops_by_s is None and (reason := self.owners.out_of_budget(lease.cell.owner)):
                self._stop(lease, Stop(lease.cell.cell_id, StopKind.BUDGET, reason))

    def _stop(self, lease: Lease, stop: Stop) -> None:
        self.stops.append(stop)
        self.leases[self.leases.index(lease)] = replace(lease, stops_by_s=self.now_s + self.settings.checkpoint_s)
