"""The product for Python programs and notebooks: `from jobs.api import compare, finetune, benchmark, plan`.

docs/python.md shows them at work; `jobs.client` has the verbs of the cluster's queue.
"""

from jobs.notebook.launching import benchmark, compare, finetune
from jobs.notebook.planning import PlannedJob, plan
from jobs.notebook.results import BenchmarkResult, JobResult, load_report

__all__ = ["BenchmarkResult", "JobResult", "PlannedJob", "benchmark", "compare", "finetune", "load_report", "plan"]
