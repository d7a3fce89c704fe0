"""What the driver makes of the accounts that ranks left behind, and of the words of Ray Train."""

from dataclasses import asdict
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from orchestrator.attempt.failure import PEER_LOST, PREEMPTED, WORKER_DIED, Failure, find_first_cause
from orchestrator.layout import CellFolder
from orchestrator.results import write_json

GLOO = "RuntimeError: [../gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:4242\nTraceback ..."
DEATH = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())


def leave_account(folder: Path, failure: Failure, attempt: int = 1) -> None:
    write_json(folder / "failures" / f"attempt-{attempt:03d}-rank-{failure.rank}.json", asdict(failure))


def echo(rank: int, time: float = 10.0) -> Failure:
    return Failure(PEER_LOST, GLOO, rank, time, retriable=True)


def test_the_rank_that_ray_found_dead_is_named_before_the_rank_that_lost_the_connection(tmp_path: Path) -> None:
    leave_account(tmp_path, echo(0))
    write_json(CellFolder(tmp_path).worker(1), {"node": "10.0.0.2", "pid": 77, "attempt": 1})
    failure = find_first_cause(tmp_path, 1, 3, WorkerGroupError("two failed", {0: RuntimeError(GLOO), 1: DEATH}))

    assert (failure.kind, failure.rank) == (WORKER_DIED, 1)
    assert failure.message.startswith("rank 1 (pid 77 on 10.0.0.2) died without a word: ")
    assert "Rank 0 noticed: RuntimeError: [../gloo" in failure.message


def test_a_silent_rank_is_suspected_when_ray_saw_only_the_echo(tmp_path: Path) -> None:
    leave_account(tmp_path, echo(0))
    leave_account(tmp_path, echo(2))
    failure = find_first_cause(tmp_path, 1, 3, WorkerGroupError("one failed", {0: RuntimeError(GLOO)}))

    assert (failure.kind, failure.rank) == (WORKER_DIED, 1)


def test_the_rank_that_raised_is_named_however_early_the_others_noticed(tmp_path: Path) -> None:
    leave_account(tmp_path, echo(0, time=1.0))
    leave_account(tmp_path, Failure("OSError", "OSError: disk on fire", 2, 5.0, retriable=True))
    leave_account(tmp_path, Failure("OSError", "OSError: smoke", 1, 6.0, retriable=True))

    failure = find_first_cause(tmp_path, 1, 3, WorkerGroupError("all failed", {1: DEATH}))

    assert (failure.rank, failure.message) == (2, "OSError: disk on fire")


def test_accounts_of_earlier_attempts_do_not_count(tmp_path: Path) -> None:
    leave_account(tmp_path, Failure("OSError", "OSError: yesterday", 0, 1.0, retriable=True), attempt=1)

    failure = find_first_cause(tmp_path, 2, 2, WorkerGroupError("one failed", {1: DEATH}))

    assert (failure.kind, failure.rank) == (WORKER_DIED, 1)


def test_an_account_that_could_not_be_written_is_taken_from_ray(tmp_path: Path) -> None:
    failure = find_first_cause(
        tmp_path, 1, 2, WorkerGroupError("one failed", {1: OSError(30, "Read-only file system")})
    )

    assert (failure.kind, failure.rank) == ("OSError", 1)
    assert "Read-only file system" in failure.message


def test_workers_that_never_started_are_explained_by_ray(tmp_path: Path) -> None:
    failure = find_first_cause(tmp_path, 1, 2, RuntimeError("Training failed\nno room for 2 workers"))

    assert (failure.kind, failure.rank, failure.retriable) == (WORKER_DIED, None, True)
    assert failure.message.endswith("no room for 2 workers")


def test_a_node_that_was_taken_away_is_not_charged(tmp_path: Path) -> None:
    reclaimed = ActorDiedError()
    reclaimed._preempted = True
    error = WorkerHealthCheckFailedError("A worker health check failed.", reclaimed)
    failure = find_first_cause(tmp_path, 1, 2, WorkerGroupError("one failed", {1: error}))

    assert failure.kind == PREEMPTED
    assert not failure.is_charged
    assert Failure(WORKER_DIED, "", 0, 0.0, retriable=True).is_charged


@pytest.mark.parametrize("kind", [WORKER_DIED, PEER_LOST, PREEMPTED])
def test_a_fault_of_the_machine_is_never_the_same_failure_twice(kind: str) -> None:
    first, second = (Failure(kind, GLOO, 0, time, retriable=True) for time in (1.0, 2.0))
    assert not second.repeats(first)


def test_the_same_account_from_another_rank_is_the_same_failure_twice() -> None:
    first = Failure("OSError", "OSError: no such file", 0, 1.0, retriable=True)
    assert Failure("OSError", "OSError: no such file", 1, 9.0, retriable=True).repeats(first)
    assert not Failure("OSError", "OSError: disk full", 0, 9.0, retriable=True).repeats(first)
