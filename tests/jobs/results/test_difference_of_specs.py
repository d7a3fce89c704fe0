"""What changes between specs is told before anything runs, as far as their data is at hand."""

import json
from pathlib import Path
from typing import Any

from small_spec import write_small_spec

from jobs.results.differences.comparability import find_difference
from jobs.results.differences.sides import Side, side_of_job, side_of_plan, side_of_report, spec_facts
from jobs.results.documents import load_report
from orchestrator.planning.plan import load_comparison
from orchestrator.spec_files.spec import Comparison, Finetune

STORED = load_report(Path(__file__).parent / "stored" / "report.json")


def test_plans_are_compared_by_their_data_and_their_cells(tmp_path: Path) -> None:
    def planned(name: str, text: str, **spec: Any) -> Side:
        return side_of_plan(load_comparison(write_small_spec(tmp_path / name, text, **spec)), name)

    first = planned("first", "question")
    assert find_difference(first, planned("copy", "question")).same
    moved = find_difference(first, planned("moved", "another"))
    assert moved.sentence.startswith("The scores would not be comparable: B has other held-out data (the content of")
    grown = find_difference(first, planned("grown", "question", backbones=["tiny-llama2", "tiny-qwen", "tiny-mistral"]))
    assert grown.comparable == "unknown"
    assert (
        "which examples are kept depends on the backbones" in grown.sentence and "B adds tiny-mistral" in grown.sentence
    )


def test_what_a_spec_refers_to_may_be_elsewhere() -> None:
    spec = {"name": "far", "backbones": ["tiny-qwen"], "recipe": STORED["comparison"]["spec"]["recipe"]}
    job = Comparison.model_validate_json(json.dumps(spec))
    found = find_difference(side_of_job(job, "a.yaml", "a.yaml could not be planned here"), side_of_report(STORED, "b"))
    assert found.comparable == "unknown"
    assert found.sentence.startswith("Whether the scores would be comparable is not known: a.yaml could not be planned")
    assert found.changes.cells.only_b == ()


def test_a_finetune_stands_beside_a_comparison() -> None:
    shared = {"name": "one", "recipe": STORED["comparison"]["spec"]["recipe"]}
    tune = spec_facts(Finetune.model_validate_json(json.dumps({**shared, "backbone": "tiny-qwen", "seed": 1})))
    pair = spec_facts(Comparison.model_validate_json(json.dumps({**shared, "backbones": ["tiny-qwen"], "seeds": [1]})))
    differing = {path.split(".")[0] for path in {**tune, **pair} if tune.get(path) != pair.get(path)}
    assert differing == {"kind", "verdict"}
