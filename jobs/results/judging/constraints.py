"""Which backbones the constraints of a spec take out before they are ranked, and why. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from backbones.spec import BackboneSpec
from jobs.formats import count, is_number, listed, significant, some
from jobs.results.documents import Verdict
from orchestrator.results import CellResult, CellStatus
from orchestrator.spec_files.spec import Constraints

RuledOut = dict[str, list[str]]  # backbone -> reasons


def find_ruled_out(
    constraints: Constraints, backbones: Iterable[BackboneSpec], results: Sequence[CellResult] = ()
) -> RuledOut:
    """Without results: by what is known before anything runs. What was to be measured and was not rules out too."""
    measured: dict[str, list[Mapping[str, float | None]]] = {}
    for result in results:
        if result.status is CellStatus.SUCCEEDED:
            metrics = {} if result.measurement is None else result.measurement.metrics
            measured.setdefault(result.backbone_id, []).append(metrics)
    found = {
        spec.backbone_id: _declared(constraints, spec) + _measured(constraints, measured.get(spec.backbone_id))
        for spec in backbones
    }
    return {backbone_id: reasons for backbone_id, reasons in found.items() if reasons}


def _declared(constraints: Constraints, spec: BackboneSpec) -> list[str]:
    reasons = []
    allowed = constraints.licence
    if allowed is not None and (spec.licence == "unknown" or spec.licence.lower() not in map(str.lower, allowed)):
        reasons.append(f"licence {spec.licence}, allowed {listed(allowed)}")
    if constraints.context is not None and spec.context_length < constraints.context:
        known = f"{count(spec.context_length)} tokens" if spec.context_length else "unknown"
        reasons.append(f"context {known}, at least {count(constraints.context)}")
    return reasons


def _measured(constraints: Constraints, runs: Sequence[Mapping[str, float | None]] | None) -> list[str]:
    """None: nothing of it finished, so there is nothing that could be ranked."""
    reasons = []
    if runs is not None and (most := constraints.memory_gib) is not None:
        peaks = _values(runs, "peak_memory_gib")
        if not peaks or max(peaks) > most:
            known = f"{significant(max(peaks))} GiB" if peaks else "not measured"
            reasons.append(f"peak memory {known}, at most {significant(most)}")
    if runs is not None and (least := constraints.tokens_per_second) is not None:
        rates = _values(runs, "tokens_per_second_per_device")
        if not rates or fmean(rates) < least:
            known = f"{significant(fmean(rates))} tokens/s per device" if rates else "not measured"
            reasons.append(f"speed {known}, at least {significant(least)}")
    return reasons


def _values(runs: Sequence[Mapping[str, float | None]], metric: str) -> list[float]:
    """Of every run, or none: a mean or a peak of some would hide the others."""
    values = [run.get(metric) for run in runs]
    numbers = [float(value) for value in values if value is not None and is_number(value) and value > 0]
    return numbers if len(numbers) == len(values) else []


def with_ruled_out(verdict: Verdict, out: RuledOut) -> Verdict:
    """Says who was taken out and why, in the verdict's sentence and in its facts."""
    if not out:
        return verdict
    named = [f"{backbone_id} ({'; '.join(reasons)})" for backbone_id, reasons in out.items()]
    sentence = verdict["sentence"]
    if not verdict["ranking"]:
        sentence = "No verdict: no finished backbone meets the constraints."
    verdict["sentence"] = f"{sentence} Ruled out by verdict.constraints: {some(named)}."
    verdict["ruled_out"] = out
    return verdict
