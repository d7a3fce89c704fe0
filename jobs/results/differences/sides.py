"""What `backbone diff` compares: a report, a plan or a bare spec, brought to one shape. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from jobs.formats import flatten, is_number
from jobs.results.documents import Facts, Report, TrainedCell, Verdict, find_verdict
from jobs.results.finished import data_facts
from orchestrator.identity import backbone_identity
from orchestrator.planning.plan import Plan
from orchestrator.spec_files.spec import Comparison, Decision, Finetune, Job, SelfComparison

BITS_PER_BYTE = "bits_per_byte"
SETS = ("backbones", "seeds", "recipe.adaptation.target_modules")  # lists whose order says nothing

_KINDS: Mapping[str, type[Job]] = {one.kind: one for one in (Comparison, Decision, SelfComparison, Finetune)}
_PLACES = ("device", "packages")  # in a contract they say where a run was, not what it was
_OF_A_BACKBONE = ("family", "hf_hub_path", "revision", "prompt_variant", "context_length", "licence", "architecture")

Scores = Mapping[str, Mapping[int, float]]  # backbone -> seed -> score


@dataclass(frozen=True)
class Run:
    """A cell: planned, or as it ended."""

    backbone_id: str
    seed: int
    status: str | None = None  # None: only planned
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the two that are compared. Facts have dotted names; one that is not known is not there."""

    source: str  # as the user named it
    title: str
    spec: Facts  # every default in its place
    data: Facts = field(default_factory=dict)
    backbones: Mapping[str, Facts] = field(default_factory=dict)
    environment: Facts = field(default_factory=dict)
    cells: Mapping[str, Run] = field(default_factory=dict)
    judged: Scores = field(default_factory=dict)  # by the metric of the verdict; empty where nothing was judged
    metric: str = BITS_PER_BYTE
    verdict: Verdict | None = None
    unread: str | None = None  # why the data of a spec is not known

    @property
    def is_finished(self) -> bool:
        """Whether it is a report, and not what somebody means to run."""
        return any(run.status is not None for run in self.cells.values())

    @property
    def runs(self) -> Scores:
        """Bits per byte of every run that has them, whatever the verdict judges."""
        found: dict[str, dict[int, float]] = {}
        for run in self.cells.values():
            if run.bits_per_byte is not None:
                found.setdefault(run.backbone_id, {})[run.seed] = run.bits_per_byte
        return found


def side_of_report(report: Report, source: str) -> Side:
    """A finished comparison or finetune."""
    job, verdict = report["comparison"], find_verdict(report)
    return Side(
        source=source,
        title=f"{job['kind']} {job['id']}, {job['created']}",
        spec=_reported_spec(job["kind"], job["spec"]),
        data=_flat({name: value for name, value in report["data"].items() if name != "backbones"}),
        backbones=_reported_backbones(report),
        environment=_reported_environment(report),
        cells={cell["cell_id"]: _run(cell) for cell in report["cells"]},
        judged={
            row["backbone_id"]: {int(seed): score for seed, score in row["seeds"].items() if is_number(score)}
            for row in report.get("ranking") or []
        },
        metric=BITS_PER_BYTE if verdict is None else verdict.get("metric", BITS_PER_BYTE),
        verdict=verdict,
    )


def side_of_plan(plan: Plan, source: str) -> Side:
    """A spec whose data and backbones are at hand; nothing of it ran yet."""
    return Side(
        source=source,
        title=f"{plan.kind} {plan.job_id}, planned",
        spec=spec_facts(plan.job),
        data=_flat(data_facts(plan, {})),
        backbones={
            spec.backbone_id: _flat(
                {
                    **{name: value for name, value in asdict(spec).items() if name in _OF_A_BACKBONE},
                    "declared_parameters": spec.parameters,  # those of a contract count PAD rows too
                    "prompt_format": spec.prompt_builder,
                    "weights_digest": spec.weights_digest,
                    "identity": backbone_identity(spec),
                }
            )
            for spec in plan.backbones
        },
        cells={cell.cell_id: Run(cell.backbone.backbone_id, cell.seed) for cell in plan.cells},
    )


def side_of_job(job: Job, source: str, unread: str) -> Side:
    """A spec whose data or backbones cannot be read here, and why."""
    return Side(source, f"{job.kind} {job.name}, not planned", spec_facts(job), unread=unread)


def spec_facts(job: Job) -> Facts:
    """Every key of a spec with its value, defaults included, also those that a dump leaves out.

    One backbone and one seed are sets of one, so that a finetune stands beside a comparison.
    """
    facts = {name: value for name, value in _plain(job).items() if name not in ("backbone", "seed")}
    return _with_sets(facts | {"kind": job.kind, "backbones": [*job.references], "seeds": [*job.seed_list]})


def _reported_spec(kind: str, spec: Facts) -> Facts:
    """As this version reads it, so that a key which an earlier one did not know has its default."""
    model = _KINDS.get(kind)
    try:
        if model is not None:
            return spec_facts(model.model_validate_json(json.dumps(spec)))
    except ValidationError:
        pass  # another version's, which this one cannot read: taken as it stands
    return _with_sets({"kind": kind, **spec})


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        keys = type(value).model_fields.items()
        return {described.alias or name: _plain(getattr(value, name)) for name, described in keys}
    return to_jsonable_python(value)


def _with_sets(spec: Mapping[str, Any]) -> Facts:
    facts = _flat(spec).items()
    return {name: sorted(value) if name in SETS and isinstance(value, list) else value for name, value in facts}  # type: ignore[type-var]


def _flat(facts: Mapping[str, Any]) -> Facts:
    found: dict[str, Any] = flatten(facts)
    return found


def _run(cell: TrainedCell) -> Run:
    score = cell["metrics"].get("val_bits_per_byte")
    return Run(cell["backbone_id"], cell["seed"], cell["status"], score if is_number(score) else None)


def _reported_backbones(report: Report) -> dict[str, Facts]:
    """What was found of each: its contract, its identity, and what its tokenizer made of the data."""
    contracts: dict[str, list[Facts]] = {cell["backbone_id"]: [] for cell in report["cells"]}
    for cell in report["cells"]:
        contract = {name: value for name, value in cell["contract"].items() if name not in _PLACES}
        contracts[cell["backbone_id"]].append(_flat(contract))
    keys, of_data = _certificate_keys(report), report["data"].get("backbones", {})
    return {
        name: {
            **_agreed(found),
            **({"identity": keys[name]["backbone"]} if "backbone" in keys.get(name, {}) else {}),
            **_flat({"data": of_data.get(name, {})} if name in of_data else {}),
        }
        for name, found in contracts.items()
    }


def _reported_environment(report: Report) -> Facts:
    """Where it ran; what changes from minute to minute is left out."""
    environment = {name: value for name, value in report["environment"].items() if name != "load_average"}
    codes = [{"code": keys["code"]} for keys in _certificate_keys(report).values() if "code" in keys]
    devices = [{"device": cell["contract"]["device"]} for cell in report["cells"] if "device" in cell["contract"]]
    return {**_flat(environment), **_agreed([*devices, *codes])}


def _certificate_keys(report: Report) -> dict[str, dict[str, Any]]:
    certificates = report.get("certificates", {}).items()
    keys = {name: facts.get("keys") for name, facts in certificates if facts is not None}
    return {name: found for name, found in keys.items() if isinstance(found, dict)}


def _agreed(facts: Sequence[Mapping[str, Any]]) -> Facts:
    """Each fact once; where runs disagree, every value that one of them has."""
    names: Iterable[str] = dict.fromkeys(name for one in facts for name in one)
    values = {name: [one[name] for one in facts if name in one] for name in names}
    agreed: dict[str, Any] = {}
    for name, found in values.items():
        same = all(value == found[0] for value in found)
        agreed[name] = found[0] if same else sorted({str(value) for value in found})
    return agreed
