"""The policy's promises, on random clusters and queues; every check does its own arithmetic on nodes.

Over 300 lines: the properties of one function.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.queue.gangs import Demand, Node, Placement, Room
from jobs.queue.model import HOUR_S, Lease, OwnerRules, QueuedCell, Settings, Usage, WaitingLine
from jobs.queue.policy import Decisions, decide

NOW_S = 1000.0
OWNERS = ("ada", "bob", "eve")
RULES = Settings(ageing_window_s=200, checkpoint_s=10, share_half_life_s=500)
QUOTAS = replace(RULES, owners={"ada": OwnerRules(gpu_quota=5), "bob": OwnerRules(weight=2.0, gpu_hours=0.6)})

PROPERTY = settings(max_examples=250, deadline=None)

Free = dict[str, list[int]]


@dataclass(frozen=True)
class State:
    """What `decide` is given."""

    nodes: tuple[Node, ...]
    waiting: tuple[QueuedCell, ...]
    leases: tuple[Lease, ...]

    def decide(self, rules: Settings, reserved_for: str | None = None) -> Decisions:
        return decide(NOW_S, self.nodes, WaitingLine(rules, self.waiting), self.leases, rules, {}, reserved_for)


@st.composite
def demands(draw: st.DrawFn, plain: bool) -> Demand:
    workers = draw(st.integers(1, 6))
    if plain:
        return Demand(workers)
    label = draw(st.sampled_from([None, None, "H100"]))
    return Demand(workers, draw(st.integers(1, 4)), draw(st.integers(0, 3)), draw(st.integers(0, 8)), label)


@st.composite
def cells(draw: st.DrawFn, number: int, plain: bool) -> QueuedCell:
    return QueuedCell(
        f"cell-{number:02d}",
        draw(st.sampled_from(OWNERS)),
        draw(demands(plain)),
        float(draw(st.integers(1, 400))),
        float(draw(st.integers(0, int(NOW_S)))),
        draw(st.integers(0, 3)),
        draw(st.booleans()),
    )


@st.composite
def states(draw: st.DrawFn, plain: bool = False) -> State:
    """Nodes with some cells that run (placed by the packing itself) and some that wait."""
    kinds = draw(st.lists(st.tuples(st.integers(1, 8), st.sampled_from([None, "H100"])), min_size=1, max_size=4))
    nodes = tuple(Node(f"n{i}", gpus, 2 * gpus, 8 * gpus, label) for i, (gpus, label) in enumerate(kinds))
    room, leases, waiting = Room(nodes), [], []
    for number in range(draw(st.integers(1, 14))):
        cell = draw(cells(number, plain))
        placement = room.place(cell.demand)
        if placement is not None and draw(st.booleans()):
            room.take(cell.demand, placement)
            granted_s = max(cell.submitted_s, NOW_S - draw(st.integers(0, 500)))
            leases.append(Lease(cell, placement, granted_s))
        else:
            waiting.append(cell)
    return State(nodes, tuple(waiting), tuple(leases))


def free_beside(nodes: Sequence[Node], booked: Iterable[tuple[Demand, Placement]]) -> Free:
    free = {node.node_id: [node.gpus, node.cpus, node.memory_gib] for node in nodes}
    for demand, placement in booked:
        for node_id, workers in placement:
            for kind, amount in enumerate(
                (demand.gpus_per_worker, demand.cpus_per_worker, demand.memory_gib_per_worker)
            ):
                free[node_id][kind] -= workers * amount
    return free


def fits(nodes: Sequence[Node], free: Free, demand: Demand) -> bool:
    """Puts worker after worker wherever there is room: bundles are alike, so the order does not matter."""
    bundle = (demand.gpus_per_worker, demand.cpus_per_worker, demand.memory_gib_per_worker)
    free = {node_id: amounts[:] for node_id, amounts in free.items()}
    for _ in range(demand.workers):
        for node in nodes:
            have = free[node.node_id]
            if demand.accelerator in (None, node.accelerator) and all(a >= b for a, b in zip(have, bundle)):
                free[node.node_id] = [a - b for a, b in zip(have, bundle)]
                break
        else:
            return False
    return True


def ends(state: State, decisions: Decisions, rules: Settings) -> list[tuple[float, Demand, Placement]]:
    """(predicted end, what, where) of everything that runs once the decisions are obeyed."""
    stopped = {stop.cell_id for stop in decisions.stops}
    running = [
        (
            NOW_S + rules.checkpoint_s if lease.cell.cell_id in stopped else lease.expected_end_s(NOW_S),
            lease.cell.demand,
            lease.placement,
        )
        for lease in state.leases
    ]
    granted = [(NOW_S + one.cell.predicted_s, one.cell.demand, one.placement) for one in decisions.grants]
    return running + granted


def free_at(state: State, decisions: Decisions, rules: Settings, when_s: float) -> Free:
    left = [(demand, placement) for end_s, demand, placement in ends(state, decisions, rules) if end_s > when_s]
    return free_beside(state.nodes, left)


def left_waiting(state: State, decisions: Decisions) -> list[QueuedCell]:
    granted = {grant.cell.cell_id for grant in decisions.grants}
    return [cell for cell in state.waiting if cell.cell_id not in granted]


def is_held_back(decisions: Decisions, cell: QueuedCell) -> bool:
    return any(word in decisions.why_waiting(cell) for word in ("quota", "budget", "never fits"))


@PROPERTY
@given(states(), st.sampled_from([RULES, QUOTAS]))
def test_a_gang_is_granted_whole_on_nodes_that_have_the_room(state: State, rules: Settings) -> None:
    decisions = state.decide(rules)
    labels = {node.node_id: node.accelerator for node in state.nodes}
    for grant in decisions.grants:
        assert sum(workers for _, workers in grant.placement) == grant.cell.demand.workers
        assert len(dict(grant.placement)) == len(grant.placement)
        assert all(grant.cell.demand.accelerator in (None, labels[node_id]) for node_id, _ in grant.placement)
    booked = [(lease.cell.demand, lease.placement) for lease in state.leases]
    booked += [(grant.cell.demand, grant.placement) for grant in decisions.grants]
    assert min(min(amounts) for amounts in free_beside(state.nodes, booked).values()) >= 0
    assert len({grant.cell.cell_id for grant in decisions.grants}) == len(decisions.grants)


@PROPERTY
@given(states(), st.sampled_from([RULES, QUOTAS]), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(state: State, rules: Settings, chance: random.Random) -> None:
    shuffled = State(
        state.nodes,
        tuple(chance.sample(state.waiting, len(state.waiting))),
        tuple(chance.sample(state.leases, len(state.leases))),
    )
    one, other = state.decide(rules), shuffled.decide(rules)
    assert (one.grants, one.stops, one.reserved_for, one.reserved_start_s) == (
        other.grants,
        other.stops,
        other.reserved_for,
        other.reserved_start_s,
    )


@PROPERTY
@given(states())
def test_nothing_delays_the_first_that_waits(state: State) -> None:
    """The reservation is as early as without any backfill, and still holds once the backfill runs."""
    decisions, plain = state.decide(RULES), state.decide(replace(RULES, backfill=False))
    assert decisions.reserved_for == plain.reserved_for
    assert decisions.reserved_start_s == plain.reserved_start_s
    if decisions.reserved_for is not None and decisions.reserved_start_s is not None:
        head = next(cell for cell in state.waiting if cell.cell_id == decisions.reserved_for)
        assert fits(state.nodes, free_at(state, decisions, RULES, decisions.reserved_start_s), head.demand)


@PROPERTY
@given(states())
def test_a_lower_effective_priority_passes_only_by_backfill(state: State) -> None:
    decisions = state.decide(RULES)
    blocked = [cell for cell in left_waiting(state, decisions) if not is_held_back(decisions, cell)]
    highest = max((RULES.level(cell) for cell in blocked), default=-(10**9))
    for grant in decisions.grants:
        assert grant.reason.startswith("backfill") or RULES.level(grant.cell) >= highest
    if blocked:
        head = next(cell for cell in blocked if cell.cell_id == decisions.reserved_for)
        assert RULES.level(head) == highest


@PROPERTY
@given(states())
def test_nothing_that_fits_and_is_done_in_time_keeps_waiting(state: State) -> None:
    decisions = state.decide(RULES)
    free = free_at(state, decisions, RULES, NOW_S - 1)
    for cell in left_waiting(state, decisions):
        if fits(state.nodes, free, cell.demand):
            assert decisions.reserved_start_s is not None
            assert NOW_S + cell.predicted_s > decisions.reserved_start_s


@PROPERTY
@given(states(plain=True))
def test_nothing_that_leaves_the_reservation_its_room_keeps_waiting(state: State) -> None:
    decisions = state.decide(RULES)
    free = free_at(state, decisions, RULES, NOW_S - 1)
    for cell in left_waiting(state, decisions):
        if cell.cell_id != decisions.reserved_for and fits(state.nodes, free, cell.demand):
            head = next(one for one in state.waiting if one.cell_id == decisions.reserved_for)
            then = free_at(state, decisions, RULES, decisions.reserved_start_s or NOW_S)
            assert sum(gpus for gpus, *_ in then.values()) < head.gpus + cell.gpus


@PROPERTY
@given(states(), st.sampled_from([RULES, QUOTAS]))
def test_only_lower_and_preemptible_cells_are_preempted_and_no_more_than_needed(state: State, rules: Settings) -> None:
    decisions = state.decide(rules)
    by_id = {lease.cell.cell_id: lease for lease in state.leases}
    victims = [by_id[stop.cell_id] for stop in decisions.stops if stop.kind == "preempted"]
    if not victims:
        return
    head = next(cell for cell in state.waiting if cell.cell_id == decisions.reserved_for)
    for victim in victims:
        assert victim.cell.preemptible
        assert victim.cell.priority < head.priority
        assert rules.level(victim.released(NOW_S, 0.0)) < rules.level(head)
        kept = replace(decisions, stops=tuple(one for one in decisions.stops if one.cell_id != victim.cell.cell_id))
        in_order = tuple(grant for grant in decisions.grants if not grant.reason.startswith("backfill"))
        then = free_at(state, replace(kept, grants=in_order), rules, NOW_S + rules.checkpoint_s)
        assert not fits(state.nodes, then, head.demand)
    assert decisions.reserved_start_s == NOW_S + rules.checkpoint_s
    assert all(head.cell_id in stop.reason for stop in decisions.stops if stop.kind == "preempted")


@PROPERTY
@given(states())
def test_quotas_and_budgets_hold(state: State) -> None:
    decisions = state.decide(QUOTAS)
    running = Counter[str]()
    for lease in state.leases:
        running[lease.cell.owner] += lease.cell.gpus
    granted = Counter[str]()
    for grant in decisions.grants:
        granted[grant.cell.owner] += grant.cell.gpus
    assert not granted["ada"] or running["ada"] + granted["ada"] <= 5
    mine = [lease for lease in state.leases if lease.cell.owner == "bob"]
    used = sum(lease.cell.gpus * (NOW_S - lease.granted_s) for lease in mine) / HOUR_S
    if used >= 0.6:
        assert not granted["bob"]
        stopped = {stop.cell_id for stop in decisions.stops if stop.kind == "budget"}
        assert stopped == {lease.cell.cell_id for lease in mine}


@PROPERTY
@given(states(), st.sampled_from([RULES, QUOTAS]))
def test_everything_that_waits_can_say_why(state: State, rules: Settings) -> None:
    decisions = state.decide(rules)
    assert all(grant.reason for grant in decisions.grants)
    assert all(decisions.why_waiting(cell) for cell in left_waiting(state, decisions))


# --- by example ---


def cell(name: str, gpus: int, predicted_s: float = 100.0, **other: object) -> QueuedCell:
    given = {"owner": "ada", "submitted_s": 0.0, **other}
    return QueuedCell(name, demand=Demand(gpus), predicted_s=predicted_s, **given)  # type: ignore[arg-type]


def run(state: State, rules: Settings = RULES, usage: dict[str, Usage] | None = None, reserved_for: str | None = None):
    return decide(NOW_S, state.nodes, WaitingLine(rules, state.waiting), state.leases, rules, usage or {}, reserved_for)


ONE_NODE = (Node("n0", 8),)


def test_owners_take_turns_by_weight() -> None:
    waiting = [cell(f"{owner}-{n}", 1, owner=owner) for owner in ("ada", "bob") for n in range(8)]
    rules = replace(RULES, owners={"bob": OwnerRules(weight=3.0)})
    granted = Counter(grant.cell.owner for grant in run(State(ONE_NODE, tuple(waiting), ()), rules).grants)
    assert granted == {"ada": 2, "bob": 6}


def test_an_owner_who_used_much_lately_comes_later() -> None:
    state = State(ONE_NODE, (cell("a", 8, owner="ada"), cell("b", 8, owner="bob")), ())
    assert [one.cell.cell_id for one in run(state).grants] == ["a"]
    used = {"ada": Usage().charged(4, 500.0, NOW_S, RULES.share_half_life_s)}
    assert [one.cell.cell_id for one in run(state, usage=used).grants] == ["b"]
    assert used["ada"].decayed_at(NOW_S + RULES.share_half_life_s, RULES.share_half_life_s) == pytest.approx(1.0)


def test_a_promise_is_kept_when_shares_move() -> None:
    running = Lease(cell("r", 8, 50.0, owner="eve"), (("n0", 8),), NOW_S)
    state = State(ONE_NODE, (cell("a", 8, owner="ada"), cell("b", 8, owner="bob")), (running,))
    used = {"ada": Usage(decayed_gpus=4.0, at_s=NOW_S)}
    assert run(state, usage=used).reserved_for == "b"
    assert run(state, usage=used, reserved_for="a").reserved_for == "a"


def test_waiting_outranks_a_higher_priority_in_the_end() -> None:
    young, old = cell("young", 8, submitted_s=900.0, priority=3), cell("old", 8, submitted_s=0.0, priority=0)
    (grant,) = run(State(ONE_NODE, (young, old), ())).grants
    assert grant.cell is old
    assert "effective priority 5 (0 and 5 for waiting)" in grant.reason


def test_a_small_cell_of_the_same_owner_does_not_keep_a_large_one_from_its_quota() -> None:
    running = Lease(cell("r", 3, 60.0), (("n0", 3),), NOW_S)
    waiting = (cell("large", 4, 900.0), cell("long", 1, 500.0), cell("short", 1, 50.0))
    rules = replace(RULES, owners={"ada": OwnerRules(gpu_quota=4)})
    decisions = run(State(ONE_NODE, waiting, (running,)), rules)
    assert [grant.cell.cell_id for grant in decisions.grants] == ["short"]
    assert decisions.why_waiting(waiting[0]) == "needs 4 GPUs; ada holds 4 of its quota of 4"
    without_short = run(State(ONE_NODE, waiting[:2], (running,)), rules)
    assert not without_short.grants
    assert without_short.why_waiting(waiting[1]) == "would keep an earlier cell of ada waiting for its quota"


def test_a_gang_goes_to_the_fewest_nodes_and_the_tightest() -> None:
    room = Room((Node("a", 8), Node("b", 4), Node("c", 8)))
    assert room.place(Demand(3)) == (("b", 3),)
    assert room.place(Demand(12)) == (("a", 8), ("b", 4))
    assert room.place(Demand(3, gpus_per_worker=4, accelerator=None)) == (("a", 2), ("b", 1))
    assert room.place(Demand(6, gpus_per_worker=4)) is None


def test_a_prediction_that_proved_too_short_is_stretched() -> None:
    late = Lease(cell("late", 8, 100.0), (("n0", 8),), NOW_S - 400)
    decisions = run(State(ONE_NODE, (cell("next", 8), cell("tiny", 1, 50.0)), (late,)))
    assert decisions.reserved_start_s == NOW_S + 100


def test_a_budget_says_when_to_look_again() -> None:
    rules = replace(RULES, owners={"ada": OwnerRules(gpu_hours=10.0)})
    running = Lease(cell("r", 8, 9000.0), (("n0", 8),), NOW_S - 450)
    assert run(State(ONE_NODE, (), (running,)), rules).look_again_s == NOW_S + 9 * HOUR_S / 8


def test_backfill_ends_by_the_reservation_to_the_second() -> None:
    running = Lease(cell("r", 6, 60.0), (("n0", 6),), NOW_S)
    first = cell("first", 8, 100.0, priority=1, preemptible=False)
    rules = replace(RULES, preemption=False)
    in_time = run(State(ONE_NODE, (first, cell("in-time", 2, 60.0)), (running,)), rules)
    assert [grant.cell.cell_id for grant in in_time.grants] == ["in-time"]
    late = cell("late", 2, 61.0)
    too_late = run(State(ONE_NODE, (first, late), (running,)), rules)
    assert not too_late.grants
    assert "would delay first" in too_late.why_waiting(late)


def test_a_victim_on_the_wrong_node_is_spared() -> None:
    nodes = (Node("small", 2), Node("large", 8))
    useless = Lease(cell("useless", 2, 900.0), (("small", 2),), NOW_S)
    needed = Lease(cell("needed", 8, 900.0), (("large", 8),), NOW_S - 100)
    high = QueuedCell("high", "bob", Demand(2, gpus_per_worker=4), 100.0, NOW_S, priority=6)
    decisions = run(State(nodes, (high,), (useless, needed)))
    assert [stop.cell_id for stop in decisions.stops] == ["needed"]
    assert "preempted for high, priority 6 over 0, which would wait" in decisions.stops[0].reason


def test_running_makes_no_cell_older_so_that_a_long_one_can_be_preempted() -> None:
    running = Lease(cell("long", 8, 90000.0, submitted_s=0.0), (("n0", 8),), 0.0)
    high = cell("high", 8, owner="bob", submitted_s=NOW_S, priority=1)
    assert [stop.cell_id for stop in run(State(ONE_NODE, (high,), (running,))).stops] == ["long"]
    waited = Lease(cell("waited", 8, 90000.0, submitted_s=0.0), (("n0", 8),), NOW_S - 100)
    assert not run(State(ONE_NODE, (high,), (waited,))).stops
