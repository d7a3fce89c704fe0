"""YAML at the border, and the strict schema behind it: numbers, lines, duplicates, defaults and durations."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec_files.source import SpecSource, read_spec
from orchestrator.spec_files.spec import Comparison, Finetune, seconds
from orchestrator.spec_files.validation import check

MINIMAL = """\
name: which
backbones: [tiny-llama2]
recipe:
  data: {train: a.jsonl, validation: b.jsonl}
  budget:
    amount: 2e9
"""


def read(folder: Path, text: str) -> SpecSource:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return read_spec(path)


def refused(folder: Path, text: str) -> list[tuple[str, int | None]]:
    """Dotted path and line of every problem of the YAML itself."""
    with pytest.raises(SpecError) as caught:
        read(folder, text)
    return [(problem.path, problem.line) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E9", 2e9),
        ("3e+5", 3e5),
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x10", 16),
        ("0", 0),
        ("010", "010"),  # 8 in YAML 1.1, 10 in YAML 1.2: not a number here, so nobody is surprised
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("true", True),
        ("~", None),
    ],
)
def test_a_plain_scalar_is_what_it_looks_like(text: str, value: Any, tmp_path: Path) -> None:
    found = read(tmp_path, f"key: {text}\n").data["key"]
    assert (type(found), found) == (type(value), value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(number: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert read(Path(folder), f"key: {number!r}\n").data["key"] == number


def test_a_learning_rate_without_a_point_reaches_the_recipe_as_a_number(tmp_path: Path) -> None:
    source = read(tmp_path, MINIMAL + "  optimizer: {learning_rate: 1e-4}\n")
    job, problems = check(source, Comparison, Comparison.stand_ins)
    assert not problems
    assert job is not None
    assert job.recipe.optimizer.learning_rate == 1e-4
    assert job.recipe.budget.amount == 2e9


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    text = "# a comment\nname: x\n\nrecipe:\n  budget:\n    amount: 1\nseeds:\n  - 3\n  - {a: 4}\n"
    lines = read(tmp_path, text).lines
    assert {
        path: lines[path] for path in ("name", "recipe.budget", "recipe.budget.amount", "seeds.0", "seeds.1.a")
    } == {
        "name": 2,
        "recipe.budget": 5,
        "recipe.budget.amount": 6,
        "seeds.0": 8,
        "seeds.1.a": 9,
    }


def test_a_problem_with_a_missing_key_stands_at_its_parent(tmp_path: Path) -> None:
    source = read(tmp_path, MINIMAL)
    assert source.problem("recipe.optimizer.betas", "x").line == 3
    assert source.problem("storage", "x").line == 1


def test_every_duplicate_key_is_named_at_its_own_line(tmp_path: Path) -> None:
    text = "name: a\nrecipe: {x: 1, x: 2}\nname: b\nname: c\n"
    assert refused(tmp_path, text) == [("recipe.x", 2), ("name", 3), ("name", 4)]


def test_equal_keys_under_different_parents_are_no_duplicates(tmp_path: Path) -> None:
    assert read(tmp_path, "a: {kind: 1}\nb: {kind: 2}\n").data == {"a": {"kind": 1}, "b": {"kind": 2}}


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "a: &x {c: 1}\nb:\n  <<: *x\n"])
def test_aliases_and_merge_keys_are_refused(text: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text) == [("", 2 if "<<" not in text else 3)]


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert read_spec(tmp_path / "spec.yaml").lines["recipe.budget.amount"] == 6


@pytest.mark.parametrize("model", [Comparison, Finetune])
def test_every_part_of_a_spec_refuses_keys_it_does_not_know_and_cannot_be_changed(model: type) -> None:
    schema = model.model_json_schema()
    for part in [schema, *schema["$defs"].values()]:
        assert part["additionalProperties"] is False, part["title"]
    job, _ = check(SpecSource("x", "", _minimal(model), {}), model, model.stand_ins)
    with pytest.raises(ValidationError, match="frozen"):
        job.name = "other"


def _minimal(model: type) -> dict[str, Any]:
    recipe = {"data": {"train": "a", "validation": "b"}, "budget": {"amount": 1}}
    backbones: dict[str, Any] = {"backbones": ["x"]} if model is Comparison else {"backbone": "x"}
    return {"name": "which", "recipe": recipe, **backbones}


def test_wrong_parts_do_not_hide_the_rest(tmp_path: Path) -> None:
    text = (
        MINIMAL.replace("name: which", "name: ../x").replace("amount: 2e9", "amount: -1") + "seeds: [7, x]\nnope: 1\n"
    )
    job, problems = check(read(tmp_path, text), Comparison, Comparison.stand_ins)
    assert [problem.path for problem in problems] == ["name", "recipe.budget.amount", "seeds.1", "nope"]
    assert job is not None
    assert (job.backbones, job.seed_list) == (("tiny-llama2",), (7,))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_whatever_stands_in_a_spec_is_a_problem_with_a_place_or_a_job(value: Any) -> None:
    for key in ("seeds", "recipe", "placement", "backbones", "tracking", "surprise"):
        source = SpecSource("spec.yaml", "", {**_minimal(Comparison), key: value}, {})
        job, problems = check(source, Comparison, Comparison.stand_ins)
        assert job is not None or problems
        assert all(problem.path and "'" in problem.message for problem in problems)


def test_a_number_of_seeds_and_a_list_of_seeds_say_the_same(tmp_path: Path) -> None:
    for number, text in enumerate(("seeds: 3\n", "seeds: [0, 1, 2]\n")):
        job, _ = check(read(tmp_path, MINIMAL + text), Comparison, Comparison.stand_ins)
        assert job is not None, number
        assert job.seed_list == (0, 1, 2)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("1.5h", 5400), ("30m", 1800), ("2d", 172_800)])
def test_durations_are_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0s", "12", "h", "-1h", "1h30m", "1e9h", "999999999d", "١h", "1 h", "1h\n"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s"):
        seconds(text)
