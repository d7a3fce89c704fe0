"""The dispatcher's actor as its clients see it: under which name it is found, and how it is asked."""

from typing import Any

from orchestrator.errors import ClusterError

NAMESPACE = "backbone"
ACTOR_NAME = "backbone-dispatcher"
ANSWER_LIMIT_S = 60.0  # the dispatcher may be starting anew


def find_dispatcher() -> Any | None:
    """The dispatcher of the cluster that this process is connected to, or None."""
    import ray

    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def ask(actor: Any, method: str, *arguments: Any) -> Any:
    """Calls the dispatcher. Raises what it raised, or ClusterError when it does not answer."""
    import ray

    try:
        return ray.get(actor.ask.remote(method, *arguments), timeout=ANSWER_LIMIT_S)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]  # the last line is why it could not start
        raise ClusterError(
            f"the dispatcher did not answer within {ANSWER_LIMIT_S:.0f} s ({said[-1].strip()}); "
            "`backbone doctor` finds the cause; on the head `python -m jobs.dispatcher start --storage DIR` starts it"
        ) from error
