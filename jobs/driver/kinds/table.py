"""The kinds of job by name."""

from jobs.driver.kinds.benchmark import BenchmarkKind
from jobs.driver.kinds.comparison import ComparisonKind
from jobs.driver.kinds.decision import DecisionKind
from jobs.driver.kinds.finetune import FinetuneKind
from jobs.driver.kinds.kind import JobKind
from jobs.driver.kinds.ladder import LadderKind
from jobs.driver.kinds.self_comparison import SelfComparisonKind

KINDS: dict[str, JobKind] = {
    "comparison": ComparisonKind(),
    "decision": DecisionKind(),
    "ladder": LadderKind(),
    "self-comparison": SelfComparisonKind(),
    "finetune": FinetuneKind(),
    "benchmark": BenchmarkKind(),
}
