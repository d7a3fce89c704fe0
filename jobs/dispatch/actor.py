"""The dispatcher as Ray knows it, a detached actor beside the head.

Ray imports this class wherever the actor is found, so it is small: what it holds is imported where it runs.
"""

import logging
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.dispatch.service import Setup

TRY_AGAIN_S = 5.0
log = logging.getLogger("backbone.dispatcher")


class DispatcherActor:
    """Holds the `DispatcherService`."""

    def __init__(self, setup: "Setup"):
        import ray

        try:
            from jobs.dispatch.service import DispatcherService

            self._service = DispatcherService(setup)
        except Exception:
            # Ray starts an actor that crashes again, but never one whose constructor raised: a database that is away
            # for a minute would end the dispatcher for good.
            if ray.get_runtime_context().was_current_actor_reconstructed:
                log.exception("dispatcher: not back yet")
                time.sleep(TRY_AGAIN_S)
                os._exit(1)
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the service."""
        return getattr(self._service, method)(*arguments)
