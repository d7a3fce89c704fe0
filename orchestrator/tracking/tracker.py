"""Where runs are told of: one `Tracker` a kind of place, chosen by how its URI begins. No torch, ray, mlflow.

A new one is a file in `orchestrator/tracking/trackers/` that calls `register`; nothing else names it.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol

from orchestrator.tracking.run import TrackedRun


class Tracker(Protocol):
    """A connection to one place, made when there is something to send and used by one thread."""

    def bring_up_to_date(self, run: TrackedRun) -> None:
        """Sends what the place lacks of a run, and notes in `run.sent` whatever was acknowledged, call by call.

        Safe to repeat: a call whose note was lost is made again, with the same rows. A parent comes before its
        children. Raises Refused, Forgotten, or anything else where the place does not answer: then it is tried again.
        """


class Refused(Exception):
    """The place will never take it; the message says why."""


class Forgotten(Exception):
    """The place no longer knows a run that was sent to it: another one answers there, and all is sent anew."""


OpenTracker = Callable[[str, str, Path], Tracker]  # of a URI, an experiment and a folder of the storage for artifacts

_TRACKERS: dict[str, OpenTracker] = {}


def register(open_tracker: OpenTracker, *beginnings: str) -> None:
    """Answers for URIs that begin so. Raises ValueError if another tracker does already."""
    taken = [beginning for beginning in beginnings if beginning.startswith(tuple(_TRACKERS))]
    if taken:
        raise ValueError(f"URIs that begin with {taken[0]!r} have a tracker already; choose another scheme")
    _TRACKERS.update(dict.fromkeys(beginnings, open_tracker))


def find_tracker(uri: str) -> OpenTracker | None:
    """Who answers for a URI, if anybody does."""
    _discover()
    return next((found for beginning, found in _TRACKERS.items() if uri.startswith(beginning)), None)


@cache
def _discover() -> None:
    """Imports every module of `orchestrator.tracking.trackers`; each registers itself."""
    trackers = importlib.import_module("orchestrator.tracking.trackers")
    for module in pkgutil.iter_modules(trackers.__path__):
        importlib.import_module(f"orchestrator.tracking.trackers.{module.name}")
