"""Asks every node of a cluster, in a process of its own: `python -m jobs.doctor.cluster_probe ADDRESS STORAGE OUT`
(an empty STORAGE: the one that drivers on the head are given).

A client of a cluster that is half dead can hang, or be ended by Ray's core; the doctor kills this process instead of
waiting. It writes what it has after each round, so that a late hang costs only what comes after.
"""

import contextlib
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.cluster.dispatcher import ACTOR_NAME, NAMESPACE
from jobs.doctor import node_facts
from orchestrator.results import write_json

ROUND_LIMIT_S = 20.0  # a node's first task starts a Python process there
NFS_LIMIT_S = 5.0
CLOCK_ROUNDS = 3
HEAD = "node:__internal_head__"


def main() -> None:
    address, asked_storage, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    import ray

    ray.cloudpickle.register_pickle_by_value(node_facts)
    context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    cluster = _Nodes()
    document: dict[str, Any] = {"dashboard": context.dashboard_url, "nodes": cluster.described()}
    write_json(out, document)
    document["dispatcher"] = _ask_dispatcher()
    write_json(out, document)

    storage = asked_storage or cluster.storage_of_drivers()
    document["storage"] = storage
    run = uuid.uuid4().hex
    nonces = {node_id: f"{run}-{node_id[:16]}" for node_id in cluster.ids}
    try:
        document["facts"] = cluster.each(node_facts.gather, lambda node_id: (storage, nonces[node_id], run))
        write_json(out, document)
        cluster.ids = list(document["facts"])  # who was silent once is not waited for again
        written = [nonces[node_id] for node_id, facts in document["facts"].items() if not facts["storage_fault"]]
        document["nonces"] = nonces
        document["read"] = cluster.each(node_facts.read_nonces, lambda node_id: (storage, written, NFS_LIMIT_S))
        write_json(out, document)
        document["clocks"] = _compare_clocks(cluster)
        write_json(out, document)
    finally:
        cluster.each(node_facts.remove_nonce, lambda node_id: (storage, nonces[node_id]))


class _Nodes:
    """The nodes of the cluster, and one small task on each of them."""

    def __init__(self) -> None:
        import ray

        self._nodes = ray.nodes()
        self.ids = [node["NodeID"] for node in self._nodes if node["Alive"]]

    def storage_of_drivers(self) -> str:
        """BACKBONE_STORAGE on the head, where drivers run; '' where it is not set there."""
        head = [node["NodeID"] for node in self._nodes if node["Alive"] and HEAD in node["Resources"]]
        answers = self.each(node_facts.environment, lambda _: ("BACKBONE_STORAGE",), node_ids=head)
        return str(next(iter(answers.values()), ""))

    def described(self) -> list[dict[str, Any]]:
        return [
            {
                "node_id": node["NodeID"],
                "address": node["NodeManagerAddress"],
                "alive": node["Alive"],
                "is_head": HEAD in node["Resources"],
                "resources": node["Resources"],
            }
            for node in self._nodes
        ]

    def each(
        self,
        function: Callable[..., Any],
        arguments: Callable[[str], tuple[Any, ...]],
        *,
        node_ids: Sequence[str] | None = None,
        limit_s: float = ROUND_LIMIT_S,
    ) -> dict[str, Any]:
        """What each node answers, by node id; one that does not answer in time, or fails, is left out."""
        import ray

        asked = self.ids if node_ids is None else node_ids
        pending = {self._begin(function, node_id, arguments(node_id)): node_id for node_id in asked}
        done, late = ray.wait(list(pending), num_returns=len(pending), timeout=limit_s) if pending else ([], [])
        for reference in late:
            ray.cancel(reference, force=True)
        answers = {}
        for reference in done:
            with contextlib.suppress(ray.exceptions.RayError):
                answers[pending[reference]] = ray.get(reference)
        return answers

    def _begin(self, function: Callable[..., Any], node_id: str, arguments: tuple[Any, ...]) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        return task.remote(*arguments)


def _compare_clocks(cluster: _Nodes) -> dict[str, tuple[float, float]]:
    """Each node's clock minus this one's, and by how much that may be wrong: half the shortest round trip. Seconds."""
    best: dict[str, tuple[float, float]] = {}
    for node_id in cluster.ids:
        for _ in range(CLOCK_ROUNDS):
            before = time.time()
            answers = cluster.each(node_facts.clock_s, lambda _: (), node_ids=[node_id], limit_s=5)
            after = time.time()
            if node_id not in answers:
                break
            offset, error = answers[node_id] - (before + after) / 2, (after - before) / 2
            if node_id not in best or error < best[node_id][1]:
                best[node_id] = (offset, error)
    return best


def _ask_dispatcher() -> Mapping[str, str]:
    """Whether the dispatcher's actor exists and answers; the fault in words, '' for none."""
    import ray

    try:
        actor = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
        ray.get(actor.ask.remote("ping"), timeout=10)
    except ValueError:
        return {"fault": "it is not there"}
    except ray.exceptions.GetTimeoutError:
        return {"fault": "it does not answer"}
    except ray.exceptions.RayError as error:
        return {"fault": f"it does not answer: {type(error).__name__}"}
    return {"fault": ""}


if __name__ == "__main__":
    main()
