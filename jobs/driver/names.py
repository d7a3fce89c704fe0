"""Who this driver is, and for whom it works: told by the dispatcher that started it, or found."""

import getpass
import json
import os
import socket

from orchestrator.planning.preflight import IN_RAY_JOB

DRIVER, JOB, OWNER = "BACKBONE_DRIVER", "BACKBONE_JOB", "BACKBONE_OWNER"


def driver_name() -> str:
    """What the dispatcher knows this driver by: the id of its Ray job, so that it can look after it."""
    if name := os.environ.get(DRIVER):
        return name
    job = json.loads(os.environ.get(IN_RAY_JOB, "{}")).get("metadata", {}).get("job_submission_id")
    return str(job or f"{socket.gethostname()}:{os.getpid()}")


def default_owner() -> str:
    """Whose share and quota this process counts for."""
    return os.environ.get(OWNER) or getpass.getuser()
