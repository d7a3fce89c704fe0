"""The kinds of job by name."""

from jobs.driver.kinds.benchmark import BenchmarkKind
from jobs.driver.kinds.comparison import ComparisonKind
from jobs.driver.kinds.finetune import FinetuneKind
from jobs.driver.kinds.kind import JobKind

KINDS: dict[str, JobKind] = {
    "comparison": ComparisonKind(),
    "finetune": FinetuneKind(),
    "benchmark": BenchmarkKind(),
}
