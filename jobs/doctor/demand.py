"""Whether one cell of a spec fits: on the nodes that are there, or on those that the autoscaler may start."""

from collections.abc import Sequence
from pathlib import Path

from jobs.cluster.ray_cluster import demand_of, largest_cluster
from jobs.doctor.finding import Finding, ok, problem
from jobs.queue.gangs import Demand, Node, Room

CHECK = "demand"


def check_demand(spec: Path, nodes: Sequence[Node], autoscaling_config: Path) -> Finding:
    """Raises SpecError for a spec that cannot be planned."""
    from orchestrator.planning.plan import load_plan

    cell = load_plan(spec).cells[0]
    largest = largest_cluster(autoscaling_config) if autoscaling_config.expanduser().is_file() else []
    if not any(node.gpus or node.cpus for node in largest):
        largest = []  # machines of one's own: the launcher's file does not say what they have
    demand = demand_of(cell.placement, cell.worlds)
    return judge_demand(demand.fitted(largest or nodes), nodes, largest)


def judge_demand(demand: Demand, nodes: Sequence[Node], largest: Sequence[Node]) -> Finding:
    """`largest`: what the autoscaler may reach, empty without one."""
    if Room(nodes).place(demand) is not None:
        return ok(CHECK, f"a cell asks for {demand}, and fits")
    if largest and Room(largest).place(demand) is not None:
        return ok(CHECK, f"a cell asks for {demand}, and fits once the autoscaler has started nodes")
    most = f", and the autoscaler may go up to {_offer(largest)}" if largest else ""
    sentence = f"a cell asks for {demand}; the cluster has {_offer(nodes)}{most}"
    return problem(CHECK, f"{sentence}. {_missing(demand, largest or nodes)}", _remedy(bool(largest)))


def _missing(demand: Demand, nodes: Sequence[Node]) -> str:
    """What the gang lacks, in the first unit that is short."""
    if demand.accelerator and not any(node.accelerator == demand.accelerator for node in nodes):
        kinds = sorted({node.accelerator for node in nodes if node.accelerator}) or ["none"]
        return f"No node has an {demand.accelerator}; there are: {', '.join(kinds)}."
    for unit, wanted, there in (
        ("GPUs", demand.gpus, sum(node.gpus for node in nodes)),
        ("CPUs", demand.workers * demand.cpus_per_worker, sum(node.cpus for node in nodes)),
    ):
        if wanted > there:
            return f"{wanted - there} {unit} are missing."
    return f"Only {Room(nodes).count(demand)} of its {demand.workers} workers fit, since none may span two nodes."


def _remedy(scales: bool) -> str:
    more = "raise max_workers in cluster.yaml" if scales else "add nodes"
    return f"{more}, or lower placement.workers"


def _offer(nodes: Sequence[Node]) -> str:
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    return f"{gpus} GPUs and {cpus} CPUs on {len(nodes)} nodes"
