"""`python -m jobs.gateway VERB JSON`, as a Ray job on the head: a client's question, put to the dispatcher.

A laptop reaches nothing but Ray's job API. So each question travels as a small job, and its answer as the last line
that the job prints.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.cluster.jobs_api import MARK
from jobs.cluster.ray_cluster import NAMESPACE
from jobs.driver.counterpart import ask, find_dispatcher
from orchestrator.errors import ClusterError, OrchestratorError


def main() -> None:
    """Prints the answer, or the error with its exit code, and ends with 0: the job itself did what it should."""
    verb, question = sys.argv[1], json.loads(sys.argv[2])
    try:
        answer = _answer(verb, question)
    except OrchestratorError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    print(MARK + json.dumps(answer, default=str), flush=True)


def _answer(verb: str, question: Mapping[str, Any]) -> Any:
    """A submission is planned here, where the cluster's data and models are; the rest is the dispatcher's."""
    import ray

    arguments = _planned(verb, question) if verb in ("submit", "schedule_add") else question["arguments"]
    ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    actor = find_dispatcher()
    if actor is None:
        raise ClusterError(
            "this cluster has no dispatcher; on its head, `python -m jobs.dispatcher start --storage DIR` starts one"
        )
    return ask(actor, verb, *arguments)


def _planned(verb: str, question: Mapping[str, Any]) -> Sequence[Any]:
    from jobs.dispatch.planning import (  # half a second that other questions need not wait
        plan_schedule,
        plan_submission,
    )

    return [plan_submission(question)] if verb == "submit" else plan_schedule(question)


if __name__ == "__main__":
    main()
