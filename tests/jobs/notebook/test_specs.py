"""A spec in the shapes that a notebook has, and what is said of one that is wrong."""

import html
import json
from pathlib import Path

import pytest
import yaml

from jobs.api import compare, plan
from jobs.notebook.specs import spec_file
from orchestrator.errors import InputError, SpecError


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Of a small comparison whose data lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "BACKBONE_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    for split, first in (("train", 0), ("validation", 100)):
        rows = [{"prompt": f"{n}?", "completion": f"The half of {n} is {n / 2}."} for n in range(first, first + 20)]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    recipe = {"data": data, "sequence_length": 64, "global_batch_size": 2, "budget": {"kind": "steps", "amount": 1}}
    return {"name": "shapes", "backbones": ["tiny-llama2", "tiny-mistral"], "seeds": 2, "recipe": recipe}


def test_a_path_a_dict_and_keywords_plan_the_same_job(keys: dict) -> None:
    Path("compare.yaml").write_text(yaml.safe_dump(keys))
    ids = [plan(shape).job_id for shape in ("compare.yaml", Path("compare.yaml"), keys)]
    assert {*ids, plan(**keys).job_id} == {ids[0]}
    assert plan("compare.yaml", seeds=3).job_id != ids[0]
    assert len(plan("compare.yaml", seeds=3).cells) == 6


def test_a_dict_becomes_one_file_that_the_command_line_can_take(keys: dict) -> None:
    file = spec_file(keys, {})
    assert file == spec_file(None, keys)
    assert yaml.safe_load(file.read_text()) == keys
    assert len(list(file.parent.iterdir())) == 1


def test_keys_over_a_file_stay_beside_it_so_that_its_paths_stay_true(keys: dict, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for split in ("train", "validation"):
        Path(f"{split}.jsonl").rename(folder / f"{split}.jsonl")
    (folder / "compare.yaml").write_text(yaml.safe_dump(keys))
    assert len(plan(folder / "compare.yaml", seeds=1).cells) == 2


def test_a_plan_is_shown_with_what_cannot_run(keys: dict) -> None:
    keys["recipe"]["sequence_length"] = 100_000
    planned = plan(keys)
    assert len(planned.infeasible) == 2
    shown = html.unescape(planned._repr_html_())
    assert all(reason in shown for reason in planned.infeasible)
    assert set(planned.cells["backbone_id"]) == {"tiny-llama2", "tiny-mistral"}
    with pytest.raises(SpecError, match="has a context of"):
        compare(keys)
    assert not list(Path("runs").glob("*/output.txt"))


def test_what_is_wrong_with_a_spec_is_said_before_anything_starts(keys: dict) -> None:
    with pytest.raises(SpecError, match="did you mean 'seeds'") as caught:
        compare(keys, seed_list=3, recipe={**keys["recipe"], "global_batch_size": 0})
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="no spec was given"):
        compare()
    with pytest.raises(InputError, match="the spec holds what no file can"):
        compare(keys, seeds=object())
    with pytest.raises(SpecError, match="no such file"):
        compare("missing.yaml")
    with pytest.raises(InputError, match="no_such_module"):
        compare(keys, plugins=["no_such_module"])
    assert not Path("runs").exists()
