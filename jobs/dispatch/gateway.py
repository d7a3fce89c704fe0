"""`python -m jobs.dispatch.gateway VERB JSON`, as a Ray job on the head: a client's question, put to the dispatcher.

A laptop reaches nothing but Ray's job API. So each question travels as a small job, and its answer as the last line
that the job prints.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from jobs.cluster.dispatcher import NAMESPACE, ask, find_dispatcher
from jobs.cluster.jobs_api import MARK
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

    if verb == "schedule_add":
        verb, arguments = "schedule", ("add", *_planned_schedule(question))
    else:
        arguments = _planned_submission(question) if verb == "submit" else tuple(question["arguments"])
    ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    actor = find_dispatcher()
    if actor is None:
        raise ClusterError(
            "this cluster has no dispatcher; on its head, `python -m jobs.dispatcher start --storage DIR` starts one"
        )
    return ask(actor, verb, *arguments)


# Planning takes half a second to import, which other questions need not wait.


def _planned_submission(question: Any) -> tuple[Any, ...]:
    from jobs.dispatch.planning import plan_submission

    return (plan_submission(question),)


def _planned_schedule(question: Any) -> tuple[Any, ...]:
    from jobs.dispatch.planning import plan_schedule

    return plan_schedule(question)


if __name__ == "__main__":
    main()
