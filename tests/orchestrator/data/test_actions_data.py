"""`format: actions`: rows and what is wrong with them, statistics of the training split, arrays made of both."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backbones.registry import get_spec, load_codec
from orchestrator.data.actions import ActionStatistics, count_statistics, statistics_from_json
from orchestrator.data.examples import Example, Turn
from orchestrator.data.prepare import load_tokenized, prepare, prepared_from_json, splits_of
from orchestrator.data.sources.cache import ScanCache
from orchestrator.data.sources.containers import part_of
from orchestrator.data.sources.dataset import held
from orchestrator.data.sources.load import load_split
from orchestrator.data.sources.scan import Reading
from orchestrator.errors import InputError, SpecError
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Data

Row = dict[str, Any]
# Before there were actions.
TALK_AND_TEXT = ["d28290d65311a3442281ea49cb2c084e", "c8259a133a437ea90fe784c82e588f06"]
FOLDERS = ["ffd884819f10fdb156daafa436d53a97", "7186b2755ec97482ac2ae93d75a955b8"]


def step(number: int, size: int = 7, **changes: Any) -> Row:
    action = np.random.default_rng(number).normal(size=size).round(6).tolist()
    return {"episode": number // 5, "instruction": f"Lift block {number // 5}", "action": action} | changes


def write(file: Path, rows: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def load(folder: Path, name: str = "train.jsonl", **data: Any) -> Any:
    source = SpecSource(str(folder / "spec.yaml"), "", {}, {"": 1})
    return load_split(source, "train", Data(train=name, validation=name, format="actions", **data)).dataset


def plan(folder: Path, train: list[Row], validation: list[Row], **changes: Any) -> Plan:
    spec: dict[str, Any] = {
        "name": "robot",
        "backbones": changes.pop("backbones", ["tiny-qwen"]),
        "storage": str(folder / "storage"),
        **({"tuning": changes.pop("tuning")} if "tuning" in changes else {}),
        "recipe": {
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "format": "actions"},
            "sequence_length": 128,
            "global_batch_size": 4,
            "budget": {"kind": "steps", "amount": 2},
        },
    }
    spec["recipe"]["data"] |= changes.pop("data", {})
    spec["recipe"] |= changes
    write(folder / "train.jsonl", train)
    write(folder / "validation.jsonl", validation)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return load_comparison(folder / "spec.yaml")


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_a_row_is_openvlas_question_and_the_numbers_of_a_step_in_its_episode(tmp_path: Path) -> None:
    row = {"episode": 3, "step": 0, "instruction": " Put the Cup down ", "action": [0.5, -1, 1e-3], "state": [1.0]}
    write(tmp_path / "train.jsonl", [row, row | {"episode": "kitchen"}, row | {"group": "g"}])
    found = list(load(tmp_path).read())
    turns = (Turn("user", "What action should the robot take to put the cup down?"),)
    assert found[0] == Example("episode 3", turns, action=(0.5, -1.0, 0.001))
    assert [example.group for example in found] == ["episode 3", "episode kitchen", "g"]
    assert found[0].learnable_bytes == 3


def test_rows_of_other_names_and_of_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('task,action,episode_index\nlift,"[0.5, -1, 0]",2\n')
    columns = {"instruction": "task", "episode": "episode_index"}
    [found] = load(tmp_path, "train.csv", columns=columns).read()
    assert (found.group, found.action) == ("episode 2", (0.5, -1.0, 0.0))


def test_an_actions_content_is_its_question_and_its_numbers(tmp_path: Path) -> None:
    rows = [step(0), step(0, episode=7), step(0, instruction="drop"), step(1, instruction=step(0)["instruction"])]
    write(tmp_path / "train.jsonl", rows)
    hashes = [example.content_hash for example in load(tmp_path).read()]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


GOOD = step(0, size=3)
BAD: list[tuple[Row, str, str]] = [
    (GOOD | {"action": [0.1, float("nan"), 0]}, "action.1", "'action.1' is NaN; it must be a finite number"),
    (GOOD | {"action": [0.1, 0, float("inf")]}, "action.2", "is Infinity; it must be a finite number: repair the step"),
    (GOOD | {"action": [0.1, 0, 10**400]}, "action.2", "it must be a finite number"),
    (GOOD | {"action": [True, 0, 0]}, "action.0", "'action.0' is true; it must be a finite number"),
    (GOOD | {"action": ["0.1", 0, 0]}, "action.0", "'action.0' is \"0.1\"; it must be a finite number"),
    (GOOD | {"action": [0.1, 0]}, "action", "'action' has 2 numbers, and those before it have 3; repair the step"),
    (GOOD | {"action": []}, "action", "'action' is []; write {\"instruction\""),
    (GOOD | {"action": 0.5}, "action", "'action' is 0.5; write {\"instruction\""),
    (GOOD | {"instruction": "  "}, "instruction", "'instruction' is \"  \"; it must be text that is not empty"),
    (GOOD | {"episode": 1.5}, "episode", "'episode' is 1.5; it must be text that is not empty"),
    ({key: GOOD[key] for key in ("instruction", "episode")}, "action", "'action' is missing; set recipe.data.format"),
    ({key: GOOD[key] for key in ("action", "episode")}, "instruction", "'instruction' is missing; add it"),
    ({key: GOOD[key] for key in ("action", "instruction")}, "episode", "'episode' is missing; add the number or name"),
]


@pytest.mark.parametrize(("row", "path", "message"), BAD)
def test_a_bad_row_is_named_with_its_file_its_place_and_a_remedy(
    tmp_path: Path, row: Row, path: str, message: str
) -> None:
    file = write(tmp_path / "train.jsonl", [GOOD, row])
    with pytest.raises(SpecError) as caught:
        load(tmp_path)
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.path) == (str(file), 2, path)
    assert message in problem.message


def test_another_length_in_another_part_of_the_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", [step(0, 7)])
    file = write(tmp_path / "data" / "b.jsonl", [step(1, 6)])
    with pytest.raises(SpecError, match="6 numbers from here on, and those before it have 7; repair") as caught:
        load(tmp_path, "data")
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [(str(file), 1)]


def test_held_out_actions_have_the_training_actions_length(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"validation.jsonl', whose actions have 6 numbers, but those of .* have 7; hold"
    ):
        plan(tmp_path, [step(0)], [step(1, 6)])


# --- Recipes ----------------------------------------------------------------------------------------------------------


def test_a_cut_action_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="part of an action is no action; set it to intersection"):
        plan(tmp_path, [step(0)], [step(1)], data={"parity": "per_backbone"})


@pytest.mark.parametrize("kind", ["lora", "bias_only"])
def test_tokens_that_nobody_would_train_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SpecError, match=f"'recipe.adaptation.kind' is '{kind}', but the tokens that qwen25-0_5b-extra"):
        plan(tmp_path, [step(0)], [step(1)], adaptation={"kind": kind}, backbones=["tiny-qwen", "qwen25-0_5b-extra"])


def test_a_tokenizer_without_ids_to_spare_is_refused_before_anything_is_tokenized(tmp_path: Path) -> None:
    train = held("train", [Example("e", (Turn("user", "Q"),), action=(0.5,))])
    codec = load_codec(get_spec("tiny-qwen"), max_length=64)
    codec.extra_tokens = 5
    with pytest.raises(InputError, match=r"recipe.data.format is actions: 5 extra tokens are fewer than 256 bins"):
        splits_of(codec, train, train, tmp_path)


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_numpys_of_the_training_split_alone(tmp_path: Path) -> None:
    train, validation = [step(number) for number in range(40)], [step(number) for number in range(35, 60)]
    found = plan(tmp_path, train, validation).train
    actions = np.array([row["action"] for row in train[:35]])  # the others are held out
    assert found.actions is not None
    for name, expected in {
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
        "mean": actions.mean(0),
        "std": actions.std(0),
        "min": actions.min(0),
        "max": actions.max(0),
    }.items():
        assert np.array_equal(getattr(found.actions, name), expected), name
    assert (found.actions.num_transitions, found.actions.num_trajectories) == (35, 7)
    assert statistics_from_json(json.loads(json.dumps(asdict(found.actions)))) == found.actions


def test_real_steps_have_upstreams_statistics_and_survive_the_bins(kit: Path, tmp_path: Path) -> None:
    file = kit / "data" / "robot" / "bridge_steps.jsonl"
    actions = np.array([json.loads(line)["action"] for line in file.read_text().splitlines()])
    statistics = load(tmp_path, str(file)).actions
    low, high = (np.quantile(actions, share, axis=0) for share in (0.01, 0.99))
    assert np.array_equal(statistics.q01, low)
    assert np.array_equal(statistics.q99, high)
    assert (statistics.num_transitions, statistics.num_trajectories) == (250, 25)
    tokens = load_codec(get_spec("tiny-llama2"), max_length=64).actions
    normalised = statistics.normalise(actions)
    restored = statistics.restore(tokens.decode(tokens.encode(normalised)))
    assert (np.abs(restored - np.clip(actions, low, high)) <= (high - low) / 255 + 1e-9).all()


numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


@given(rows=st.lists(st.tuples(numbers, numbers, st.just(0.25)), min_size=1, max_size=12))
def test_actions_are_scaled_as_upstream_scales_them(rows: list[tuple[float, float, float]]) -> None:
    actions = np.array(rows)
    statistics = count_statistics(actions, episodes=1)
    low, high = np.quantile(actions, 0.01, axis=0), np.quantile(actions, 0.99, axis=0)
    expected = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
    expected = np.where(actions.min(0) == actions.max(0), 0.0, expected)
    normalised = statistics.normalise(actions)
    assert np.array_equal(normalised, expected)
    assert (normalised[:, 2] == 0).all()
    np.testing.assert_allclose(statistics.restore(normalised)[:, 2], 0.25)  # what never changes comes back
    wide = high - low > 1e-3
    np.testing.assert_allclose(
        statistics.restore(normalised)[:, wide], np.clip(actions, low, high)[:, wide], rtol=1e-4, atol=1e-4
    )


def test_what_openvla_reads_has_its_names() -> None:
    document = count_statistics(np.array([[0.0, 1.0], [0.5, 2.0]]), episodes=1).as_openvla("kitchen")
    assert document["kitchen"].keys() == {"action", "num_transitions", "num_trajectories"}
    assert document["kitchen"]["action"].keys() == {"mean", "std", "max", "min", "q01", "q99", "mask"}
    assert document["kitchen"]["action"]["mask"] == [True, True]


# --- Arrays -----------------------------------------------------------------------------------------------------------


def make(folder: Path, train: list[Row], validation: list[Row], backbone_id: str = "tiny-llama2") -> Any:
    planned = plan(folder, train, validation)
    codec = load_codec(get_spec(backbone_id), max_length=128)
    return planned, codec, prepare(backbone_id, codec, planned.train, planned.validation, folder / "prepared")


@pytest.mark.parametrize("backbone_id", ["tiny-llama2", "tiny-mistral", "tiny-qwen"])
def test_prepared_ids_are_the_bins_of_the_scaled_actions(tmp_path: Path, backbone_id: str) -> None:
    train, validation = [step(number) for number in range(30)], [step(number) for number in range(30, 36)]
    _, codec, prepared = make(tmp_path, train, validation, backbone_id)
    actions = np.array([row["action"] for row in train])
    low, high = np.quantile(actions, 0.01, axis=0), np.quantile(actions, 0.99, axis=0)
    for rows, file in ((train, prepared.train_file), (validation, prepared.validation_file)):
        data = load_tokenized(file)
        for index, row in enumerate(rows):
            ids, is_target, is_scored = data.example(index)
            scaled = np.clip(2 * (np.array(row["action"]) - low) / (high - low + 1e-8) - 1, -1, 1)
            expected = codec.tokenizer.vocab_size - np.digitize(scaled, np.linspace(-1, 1, 256))
            assert ids[is_scored].tolist() == expected.tolist()
            assert ids[is_target].tolist() == [*expected, codec.eos_token_id]
    assert (prepared.tokens_per_byte, prepared.missing_eos, prepared.doubled_bos) == (1.0, 0, 0)
    assert data.round_trips.all()


def test_what_was_prepared_is_found_again_with_its_statistics(tmp_path: Path) -> None:
    planned, codec, prepared = make(tmp_path, [step(number) for number in range(9)], [step(9)])
    assert prepared.actions.end == codec.actions.end
    assert prepared.actions.statistics == planned.train.actions
    assert prepared_from_json(json.loads(json.dumps(asdict(prepared)))) == prepared


def test_other_statistics_make_other_arrays_of_the_same_held_out_steps(tmp_path: Path) -> None:
    _, _, first = make(tmp_path, [step(number) for number in range(9)], [step(20)])
    _, _, second = make(tmp_path, [step(number) for number in range(10)], [step(20)])
    assert first.validation_file != second.validation_file


def test_arrays_of_other_formats_have_the_names_that_they_had(tmp_path: Path) -> None:
    talk = Example("g", (Turn("user", "What is 2 + 2?"), Turn("assistant", "It is 4 – 你好.")))
    text = Example("g", text="A text of its own, with 😀 and </s> in it.")
    assert [talk.content_hash, text.content_hash] == TALK_AND_TEXT
    splits = splits_of(
        load_codec(get_spec("tiny-qwen"), max_length=64), *(held(".", [one]) for one in (talk, text)), tmp_path
    )
    assert [split.folder.name for split in splits] == FOLDERS


def test_the_cache_of_large_data_keeps_actions(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [step(number) for number in range(50)])
    scans = ScanCache(tmp_path / "scans", worth_keeping=0)
    reading = Reading("actions")
    first = list(scans.scan([part_of(file)], reading))
    second = list(scans.scan([part_of(file)], reading))
    assert len(list((tmp_path / "scans").iterdir())) == 1
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.actions, two.actions)
        assert one.actions.shape == (50, 7)
    dataset = load(tmp_path)
    scans.keep_split("key", dataset, 0)
    found = scans.find_split("key", reading)
    assert found is not None
    assert found[0].actions == dataset.actions
    assert isinstance(dataset.actions, ActionStatistics)
