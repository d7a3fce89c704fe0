"""A queue that is killed and read from its store at any point is the same queue: random operations, by hypothesis."""

import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.queue.gangs import Demand, Node
from jobs.queue.model import OwnerRules, Settings
from jobs.queue.queue import SILENT_S, Queue
from jobs.queue.rows import WAITING, CellRequest, Directives, JobRequest, JobState, LeaseRow, Release
from jobs.queue.store import Store
from orchestrator.errors import AlreadyRunningError, InputError
from orchestrator.results import CellStatus

NODES = (Node("n0", 4, 8), Node("n1", 4, 8), Node("n2", 2, 8, accelerator="H100"))
OWNERS = {"ada": OwnerRules(weight=2.0), "bob": OwnerRules(gpu_quota=4), "eve": OwnerRules(gpu_hours=0.31)}
RULES = Settings(ageing_window_s=200.0, checkpoint_s=5.0, share_half_life_s=300.0, owners=OWNERS)


def job(job_id: str, owner: str, sizes: dict[str, Demand], **other: Any) -> JobRequest:
    cells = tuple(CellRequest(cell_id, demand, 100.0, str(demand)) for cell_id, demand in sizes.items())
    facts = {"priority": 0, "preemptible": True, "storage": "/shared", "code": "a.zip"} | other
    return JobRequest(job_id, "comparison", owner, cells=cells, **facts)


JOBS = {
    one.job_id: one
    for one in (
        job("small", "ada", {"s-0": Demand(1, 1, 2), "s-1": Demand(1, 1, 2), "s-2": Demand(2, 1, 2)}),
        job("twin", "bob", {"s-1": Demand(1, 1, 2), "s-2": Demand(2, 1, 2), "t-0": Demand(3)}),
        job("large", "ada", {"l-0": Demand(8), "l-1": Demand(4, 1, 1)}, priority=1, gpu_hours=0.173),
        job("urgent", "bob", {"u-0": Demand(4), "u-1": Demand(1, 1, 0, 0, "H100")}, priority=3, preemptible=False),
        job("budget", "eve", {"e-0": Demand(2), "e-1": Demand(2, 2)}),
        job("own", "ada", {"s-0": Demand(1, 1, 2), "o-0": Demand(2)}, code=None),
    )
}
SUBMITTED = [job_id for job_id, one in JOBS.items() if one.code is not None]
PICK = st.integers(0, 11)
MEMORY = Path("/dev/shm")  # a change waits for the disk, and here are thousands


class Restarts(RuleBasedStateMachine):
    """Drivers, clients and a cluster that do whatever they may do, in any order."""

    @initialize()
    def open(self) -> None:
        self.now_s = 1000.0
        self.folder = Path(tempfile.mkdtemp(prefix="queue-", dir=MEMORY if MEMORY.is_dir() else None))
        self.images = 0
        self.nodes: tuple[Node, ...] = NODES
        self.store, self.queue = self.open_image(self.folder / "queue.db")
        self.finished: set[str] = set()  # cells whose results are in the storage
        self.said: tuple[str, str, list[Release]] | None = None  # the last heartbeat

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def open_image(self, file: Path) -> tuple[Store, Queue]:
        store = Store(f"sqlite:///{file}")
        queue = Queue(store, RULES, lambda: self.now_s)
        queue.see_nodes(self.nodes, NODES)
        return store, queue

    def asked(self, job_id: str) -> JobRequest:
        whole = JOBS[job_id]
        return replace(whole, cells=tuple(cell for cell in whole.cells if cell.cell_id not in self.finished))

    def lease(self, pick: int) -> LeaseRow | None:
        held = self.queue.leases()
        return held[pick % len(held)] if held else None

    def driven(self) -> list[tuple[str, str]]:
        return [(row.job_id, row.driver) for row, _ in self.queue.running() if row.driver is not None]

    # --- what happens ---

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 29.0, 31.0, 100.0, 450.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(job_id=st.sampled_from(SUBMITTED))
    def submit(self, job_id: str) -> None:
        known = {row.job_id for row in self.queue.jobs() if not row.state.is_over}
        stopping = {row.job_id for row in self.queue.jobs() if row.stop and not row.state.is_over}
        before = observed(self.queue)
        try:
            self.queue.submit(self.asked(job_id))
        except InputError:
            assert job_id in stopping
        if job_id in known:
            assert observed(self.queue) == before

    @rule()
    def decide(self) -> None:
        self.queue.decide()

    @rule()
    def start_drivers(self) -> None:
        for row in self.queue.drivers_to_start():
            self.queue.attach(replace(self.asked(row.job_id), code=None), row.driver or "")

    @rule(job_id=st.sampled_from(list(JOBS)), driver=st.sampled_from(["host:1", "host:2"]))
    def attach_by_hand(self, job_id: str, driver: str) -> None:
        heard = {row.job_id: (row.driver, silence_s) for row, silence_s in self.queue.running()}
        other, silence_s = heard.get(job_id, (None, 0.0))
        is_refused = other not in (None, driver) and silence_s < SILENT_S
        try:
            self.queue.attach(replace(self.asked(job_id), code=None), driver)
        except AlreadyRunningError:
            assert is_refused
        else:
            assert not is_refused

    @rule(pick=PICK, succeeds=st.booleans(), status=st.sampled_from(["QUEUED", "FAILED", "OUT_OF_MEMORY"]))
    def release(self, pick: int, succeeds: bool, status: str) -> None:
        lease = self.lease(pick)
        if lease is None or (lease.job_id, driver := self.queue.find(lease.job_id).driver) not in self.driven():
            return
        ended = CellStatus.SUCCEEDED if succeeds else CellStatus(status)
        if lease.stop_kind is not None and not succeeds:
            ended = CellStatus.PREEMPTED if lease.stop_kind == "preempted" else CellStatus.CANCELLED
        if ended is CellStatus.SUCCEEDED:
            self.finished.add(lease.cell_id)
        self.said = (lease.job_id, driver or "", [Release(lease.lease_id, ended, "it says so")])
        self.queue.heartbeat(*self.said)

    @precondition(lambda self: getattr(self, "said", None) is not None)
    @rule()
    def the_answer_was_lost(self) -> None:
        assert self.said is not None
        before = observed(self.queue)
        self.queue.heartbeat(*self.said)
        assert observed(self.queue) == before

    @rule(pick=PICK, exit_code=st.sampled_from([0, 1, 143]))
    def finish(self, pick: int, exit_code: int) -> None:
        if driven := self.driven():
            job_id, driver = driven[pick % len(driven)]
            self.queue.finish(job_id, driver, exit_code)

    @rule(pick=PICK)
    def lose_driver(self, pick: int) -> None:
        if driven := self.driven():
            self.queue.driver_lost(*driven[pick % len(driven)], "killed")

    @rule(pick=PICK, cancel=st.booleans())
    def stop(self, pick: int, cancel: bool) -> None:
        if jobs := self.queue.jobs():
            (self.queue.cancel if cancel else self.queue.stop)(jobs[pick % len(jobs)].job_id, "ada asked")

    @rule(cluster=st.sampled_from(["first", "second"]))
    def see_cluster(self, cluster: str) -> None:
        self.queue.see_cluster(cluster)

    @rule(nodes=st.sampled_from([NODES, NODES[:1], NODES[1:]]))
    def nodes_change(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes
        self.queue.see_nodes(nodes, NODES)

    @rule()
    def it_is_killed_and_starts_again(self) -> None:
        """What is in the files now is opened: the queue read from it is the queue in memory, and decides alike."""
        self.images += 1
        file, image = Path(str(self.store.engine.url.database)), self.folder / f"image-{self.images}.db"
        shutil.copy(file, image)
        shutil.copy(f"{file}-wal", f"{image}-wal")
        store, queue = self.open_image(image)
        assert (queue.jobs(), queue.leases()) == (self.queue.jobs(), self.queue.leases())
        for one in (self.queue, queue):
            one.decide()
        assert observed(queue) == observed(self.queue)
        assert directives(queue) == directives(self.queue)
        self.store.close()
        self.store, self.queue = store, queue

    # --- what always holds ---

    @invariant()
    def no_cell_holds_two_leases(self) -> None:
        if hasattr(self, "queue"):
            leases = Counter((JOBS[one.job_id].storage, one.cell_id) for one in self.queue.leases())
            assert not leases or max(leases.values()) == 1

    @invariant()
    def gangs_are_whole_and_no_node_is_overbooked(self) -> None:
        if not hasattr(self, "queue"):
            return
        gpus, cpus = Counter[str](), Counter[str]()
        for lease in self.queue.leases():
            demand = next(one.demand for one in JOBS[lease.job_id].cells if one.cell_id == lease.cell_id)
            assert sum(workers for _, workers in lease.placement) == demand.workers
            assert lease.gpus == demand.gpus
            for node, workers in lease.placement:
                gpus[node] += workers * demand.gpus_per_worker
                cpus[node] += workers * demand.cpus_per_worker
        assert all(gpus[node.node_id] <= node.gpus and cpus[node.node_id] <= node.cpus for node in NODES)

    @invariant()
    def every_cell_that_trains_holds_a_lease_and_no_other_does(self) -> None:
        if not hasattr(self, "queue"):
            return
        held = {lease.key for lease in self.queue.leases()}
        for row in self.queue.jobs():
            cells = self.queue.cells(row.job_id)
            assert {cell.key for cell in cells if cell.state is CellStatus.RUNNING} <= held
            assert not any(cell.key in held for cell in cells if cell.state is not CellStatus.RUNNING)
            if row.state.is_over:
                assert all(cell.state.is_terminal for cell in cells)

    @invariant()
    def owners_stay_within_their_quota(self) -> None:
        if hasattr(self, "queue"):
            assert sum(lease.gpus for lease in self.queue.leases() if lease.owner == "bob") <= 4

    @invariant()
    def what_waits_stands_in_the_line_or_behind_its_twin(self) -> None:
        if not hasattr(self, "queue"):
            return
        for row in self.queue.jobs():
            waiting = [cell for cell in self.queue.cells(row.job_id) if cell.state in WAITING]
            assert not waiting or row.state in (JobState.QUEUED, JobState.RUNNING)


def observed(queue: Queue) -> Any:
    """All that one may ask a queue, but for how long ago its drivers were heard."""
    jobs = [(row, queue.cells(row.job_id), queue.why_waiting(row.job_id)) for row in queue.jobs()]
    return jobs, queue.leases(), queue.events(limit=100_000), sorted(map(str, queue.demands()))


def directives(queue: Queue) -> dict[str, Directives | None]:
    return {row.job_id: queue.heartbeat(row.job_id, row.driver or "") for row, _ in queue.running()}


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
