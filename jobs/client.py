"""The queue for Python programs: `QueueClient` has the verbs of `backbone submit, queue, status, ...`."""

from jobs.dispatch.client import Benchmark, QueueClient, Submission

__all__ = ["Benchmark", "QueueClient", "Submission"]
