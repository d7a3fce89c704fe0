"""The verdict: hand-computed cases, what it says at the edges, and its power: finding a large difference.

Over 300 lines: one verdict against several oracles.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jobs.results.judging.paired_tests import CellScores
from jobs.results.judging.seed_noise import Array
from jobs.results.judging.verdict import judge
from orchestrator.errors import InputError

TWO_GROUPS = (np.array([10.0, 10.0]), ["module a", "module b"])


def cell(backbone_id: str, seed: int, bits: Sequence[float] | Array) -> CellScores:
    return CellScores(backbone_id, seed, np.array(bits, dtype=np.float64))


def judged(cells: list[CellScores], items: Any = TWO_GROUPS, margin: float = 0.005) -> dict[str, Any]:
    document = judge(cells, *items, alpha=0.05, margin=margin)
    json.dumps(document, allow_nan=False)
    return document


def spread(mean: float, deviation: float, count: int) -> list[float]:
    """Scores with exactly this mean and sample deviation."""
    steps = np.arange(count) - (count - 1) / 2
    return [float(mean + deviation * step / np.std(steps, ddof=1)) for step in steps]


def flat_cells(scores: dict[str, list[float]], same_seeds: bool = False) -> list[CellScores]:
    """Cells without item noise: every item has the same bits per byte. Seeds of their own leave nothing to pair."""
    return [
        cell(name, seed + (0 if same_seeds else 100 * k), [10 * v, 10 * v])
        for k, (name, values) in enumerate(scores.items())
        for seed, v in enumerate(values)
    ]


def simulated(
    rng: np.random.Generator,
    *,
    offsets: Sequence[float] = (0.0, 0.0),
    seeds: int = 3,
    seed_std: float = 0.01,
    group_std: float = 0.0,
    item_std: float = 0.01,
    shared_std: float = 0.0,
    lognormal: bool = False,
    noisy: float = 1.0,
    groups: int = 16,
    per_group: int = 4,
) -> tuple[list[CellScores], Any]:
    """Near 2 bits per byte; `noisy` multiplies the first one's seed deviation, `shared_std` is seed x item noise."""
    count = groups * per_group
    group = np.repeat(np.arange(groups), per_group)
    item_bytes = np.round(np.exp(rng.normal(5, 0.5, count))) + 1
    difficulty = np.exp(rng.normal(0, 0.7, count)) if lognormal else 1 + 0.2 * rng.normal(size=count)
    cells = []
    for k, offset in enumerate(offsets):
        own = 2 + offset + group_std * rng.normal(size=groups)[group] + item_std * rng.normal(size=count)
        for seed in range(seeds):
            effect = seed_std * (noisy if k == 0 else 1) * rng.normal() + shared_std * rng.normal(size=count)
            cells.append(CellScores(f"b{k}", seed, item_bytes * difficulty * (own + effect)))
    return cells, (item_bytes, [f"g{g}" for g in group])


def test_a_small_case_matches_the_computation_by_hand() -> None:
    cells = [cell("a", 0, [20, 20]), cell("a", 1, [22, 22]), cell("b", 2, [24, 28]), cell("b", 3, [26, 30])]
    verdict = judged(cells)
    pair = verdict["pairs"][0]
    # seeds: 0.02 (1/2 + 1/2); groups differ by 0.4 and 0.8, so 0.08 / 2; df: 0.06 / (0.02 / 2 + 0.04 / 1)
    assert pair["difference"] == pytest.approx(0.6)
    assert pair["relative"] == pytest.approx(0.6 / 2.7)
    assert pair["standard_error"] == pytest.approx(sqrt(0.02 + 0.04))
    assert pair["item_se"] == pytest.approx(0.2)
    assert pair["degrees_of_freedom"] == pytest.approx(1.2)
    assert pair["p_value"] == pytest.approx(2 * stats.t.sf(0.6 / sqrt(0.06), 1.2), rel=1e-6)
    half = stats.t.ppf(0.975, 1.2) * sqrt(0.06)
    assert pair["interval"] == pytest.approx([0.6 - half, 0.6 + half], rel=1e-6)
    assert verdict["outcome"] == "undecided" and verdict["winner"] is None
    assert verdict["noise"]["seed_std"] == pytest.approx(sqrt(0.02)) and verdict["noise"]["seed_df"] == 2
    assert verdict["ranking"][0]["seeds"] == pytest.approx({"0": 2.0, "1": 2.2})


def test_seeds_that_move_both_backbones_alike_are_no_noise_of_their_difference() -> None:
    cells = [cell("a", 0, [20, 20]), cell("a", 1, [22, 22]), cell("b", 0, [24, 28]), cell("b", 1, [26, 30])]
    verdict = judged(cells)
    assert verdict["seed_noise"] == "paired" and verdict["noise"]["seed_std_paired"] == 0
    assert verdict["pairs"][0]["standard_error"] == pytest.approx(0.2)  # of the items alone
    assert verdict["noise"]["shared_seed_share"] == pytest.approx(1)


def test_paired_seeds_match_the_paired_t_test() -> None:
    a, b = [2.0, 2.2, 2.41, 2.6], [2.1, 2.31, 2.5, 2.72]
    verdict = judged(flat_cells({"a": a, "b": b}, same_seeds=True))
    assert verdict["seed_noise"] == "paired"
    assert verdict["pairs"][0]["p_value"] == pytest.approx(float(stats.ttest_rel(a, b).pvalue))


def test_seeds_that_one_backbone_alone_has_are_adjusted_for() -> None:
    a, b = [2.0, 2.2, 2.41, 2.6, 9.0, 7.0], [2.1, 2.31, 2.5, 2.72]
    verdict = judged(flat_cells({"a": a, "b": b}, same_seeds=True))
    alone = judged(flat_cells({"a": a[:4], "b": b}, same_seeds=True))
    assert verdict["winner"] == alone["winner"] == "a"
    assert verdict["pairs"][0]["difference"] == pytest.approx(alone["pairs"][0]["difference"])
    assert verdict["pairs"][0]["p_value"] == pytest.approx(alone["pairs"][0]["p_value"])
    assert any("different seeds" in note for note in verdict["notes"])


def test_three_backbones_with_unequal_seeds_match_least_squares() -> None:
    rng = np.random.default_rng(8)
    scores = {name: list(2 + 0.1 * rng.normal(size=count)) for name, count in (("a", 5), ("b", 5), ("c", 3))}
    verdict = judged(flat_cells(scores, same_seeds=True))
    rows = [(k, seed, value) for k, values in enumerate(scores.values()) for seed, value in enumerate(values)]
    design = np.array([[k == 0, k == 1, k == 2, *(seed == s for s in range(1, 5))] for k, seed, _ in rows], float)
    fit, squares, *_ = np.linalg.lstsq(design, np.array([value for *_, value in rows]))
    pair = next(pair for pair in verdict["pairs"] if {pair["a"], pair["b"]} == {"a", "c"})
    assert pair["difference"] == pytest.approx(abs(fit[0] - fit[2]))
    contrast = np.array([1, 0, -1, 0, 0, 0, 0])
    variance = squares[0] / (13 - 7) * (contrast @ np.linalg.inv(design.T @ design) @ contrast)
    assert pair["standard_error"] == pytest.approx(sqrt(variance))


def test_seed_variances_more_than_fourfold_apart_are_tested_in_welchs_form() -> None:
    verdict = judged(flat_cells({"a": [2.0, 2.2], "b": spread(2.7, sqrt(0.75), 3)}))
    pair = verdict["pairs"][0]
    assert pair["standard_error"] == pytest.approx(sqrt(0.01 + 0.25))
    assert pair["degrees_of_freedom"] == pytest.approx(0.26 / (0.01 / 1 + 0.25 / 2))
    assert any("Welch" in note for note in verdict["notes"])
    assert any("different numbers of seeds" in note for note in verdict["notes"])


def test_the_seed_variance_is_pooled_over_all_backbones() -> None:
    verdict = judged(flat_cells({"a": spread(2, 0.1, 2), "b": spread(3, 0.12, 3), "c": spread(4, 0.15, 4)}))
    pooled = (1 * 0.01 + 2 * 0.0144 + 3 * 0.0225) / 6
    assert verdict["noise"]["seed_std"] == pytest.approx(sqrt(pooled))
    assert verdict["pairs"][0]["standard_error"] == pytest.approx(sqrt(pooled * (1 / 2 + 1 / 3)))
    assert verdict["pairs"][0]["degrees_of_freedom"] == pytest.approx(6)


def test_item_noise_is_the_jackknife_of_the_byte_weighted_ratio_over_unequal_groups() -> None:
    rng = np.random.default_rng(3)
    item_bytes, groups = np.array([5.0, 40, 12, 7, 30, 30, 9]), list("aabbbcd")
    bits = rng.uniform(10, 90, size=(4, 7))
    cells = [cell("a", 0, bits[0]), cell("a", 1, bits[1]), cell("b", 0, bits[2]), cell("b", 1, bits[3])]
    difference = (bits[2:] - bits[:2]).mean(axis=0)
    kept = [np.array([group != left_out for group in groups]) for left_out in "abcd"]
    without = np.array([difference[k].sum() / item_bytes[k].sum() for k in kept])
    expected = sqrt(3 / 4 * np.sum((without - difference.sum() / item_bytes.sum()) ** 2))
    assert judged(cells, (item_bytes, groups))["pairs"][0]["item_se"] == pytest.approx(expected)


def test_one_dominating_group_leaves_hardly_more_than_one_degree_of_freedom() -> None:
    rng = np.random.default_rng(4)
    cells = [cell(name, seed, rng.uniform(10, 20, size=21)) for name in "ab" for seed in range(3)]
    names = [f"g{i}" for i in range(21)]
    equal = judged(cells, (np.full(21, 5.0), names))
    unequal = judged(cells, (np.array([100.0] + [5.0] * 20), names))
    assert equal["noise"]["item_df"] == pytest.approx(20)
    assert unequal["noise"]["item_df"] < 2
    assert any("unequal source groups" in note for note in unequal["notes"])


def test_a_clear_winner_is_named_with_its_lead() -> None:
    verdict = judged(flat_cells({"a": spread(2.413, 0.01, 3), "b": spread(2.465, 0.01, 3)}))
    assert verdict["outcome"] == "winner" and verdict["winner"] == "a"
    assert verdict["sentence"] == ("a wins: 2.413 bits per byte, 0.052 (2.1 %) below b, 95 % interval 0.029 to 0.075.")
    assert [row["worse_than_best"] for row in verdict["ranking"]] == [False, True]
    assert verdict["further_seeds"] is None


def test_a_winner_within_the_margin_is_told_to_be_a_small_one() -> None:
    verdict = judged(flat_cells({"a": spread(2.0, 0.0001, 4), "b": spread(2.004, 0.0001, 4)}))
    assert verdict["outcome"] == "winner"
    assert any("within the margin" in note for note in verdict["notes"])


def test_equivalent_backbones_tie_and_a_beaten_third_is_named() -> None:
    scores = {"a": spread(2.0, 0.004, 9), "b": spread(2.001, 0.004, 9), "c": spread(2.5, 0.004, 9)}
    verdict = judged(flat_cells(scores))
    assert verdict["outcome"] == "tie" and verdict["winner"] is None
    assert verdict["sentence"].startswith("Tie between a and b: 2.0000 bits per byte, every 90 % interval")
    assert verdict["sentence"].endswith("c is worse.")
    assert verdict["pairs"][0]["equivalent"] and not verdict["pairs"][1]["equivalent"]


def test_equivalence_is_two_one_sided_tests_at_the_margin() -> None:
    scores = {"a": spread(2.0, 0.01, 3), "b": spread(2.001, 0.01, 3)}
    reach = 0.001 + stats.t.ppf(0.95, 4) * 0.01 * sqrt(2 / 3)
    assert judged(flat_cells(scores), margin=reach / 2.0 * 1.0001)["outcome"] == "tie"
    assert judged(flat_cells(scores), margin=reach / 2.0 * 0.9999)["outcome"] == "undecided"


def test_bitwise_equal_runs_tie_and_the_verdict_says_so() -> None:
    bits = [21.3, 17.9]
    verdict = judged([cell("a", s, bits) for s in range(2)] + [cell("b", s, bits) for s in range(3)])
    assert verdict["outcome"] == "tie"
    assert verdict["pairs"][0]["p_value"] == 1.0 and verdict["pairs"][0]["interval"] == [0.0, 0.0]
    assert any("Zero variance" in note for note in verdict["notes"])
    assert any("Equal scores to the last digit: a and b" in note for note in verdict["notes"])


def test_a_constant_difference_without_any_noise_wins_and_says_that_there_was_none() -> None:
    verdict = judged(flat_cells({"a": [2.0, 2.0, 2.0], "b": [2.1, 2.1]}))
    assert verdict["outcome"] == "winner" and verdict["pairs"][0]["p_value"] == 0.0
    assert any("does the seed reach the run" in note for note in verdict["notes"])


def test_one_seed_gives_a_ranking_but_no_verdict() -> None:
    verdict = judged(flat_cells({"a": [2.0], "b": [2.5]}))
    assert verdict["outcome"] == "no verdict" and verdict["sentence"].startswith("No verdict: one seed of a and b")
    assert [row["backbone_id"] for row in verdict["ranking"]] == ["a", "b"]
    assert verdict["ranking"][0]["seed_std"] is None and verdict["ranking"][1]["worse_than_best"] is None
    assert verdict["pairs"] == [] and verdict["further_seeds"] is None


def test_a_backbone_with_one_seed_blocks_the_verdict_but_not_the_other_pairs() -> None:
    verdict = judged(flat_cells({"a": [2.0, 2.01], "b": [2.5, 2.51], "c": [1.9]}))
    assert verdict["sentence"].startswith("No verdict: one seed of c;")
    assert [(pair["a"], pair["b"]) for pair in verdict["pairs"]] == [("a", "b")]


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [({}, "No verdict: no finished cell."), ({"a": [2.0, 2.1]}, "No verdict: one backbone, a;")],
)
def test_fewer_than_two_backbones_give_no_verdict(scores: dict[str, list[float]], sentence: str) -> None:
    verdict = judged(flat_cells(scores))
    assert verdict["outcome"] == "no verdict" and verdict["sentence"].startswith(sentence)


def test_one_source_group_gives_no_verdict() -> None:
    verdict = judged(flat_cells({"a": [2.0, 2.1], "b": [2.2, 2.3]}), (np.array([10.0, 10.0]), ["x", "x"]))
    assert verdict["sentence"].startswith("No verdict: one source group")


def test_the_table_is_holm_corrected_and_the_winner_is_not() -> None:
    scores = {"a": spread(2.0, 0.01, 3), "b": spread(2.023, 0.01, 3), "c": spread(2.035, 0.01, 3)}
    verdict = judged(flat_cells(scores))
    raw = [pair["p_value"] for pair in verdict["pairs"]]  # ab, ac, bc
    assert raw[1] < raw[0] < 0.05 < raw[2]
    holm = [pair["p_value_holm"] for pair in verdict["pairs"]]
    assert holm == pytest.approx([2 * raw[0], 3 * raw[1], max(2 * raw[0], raw[2])])
    assert verdict["winner"] == "a"
    assert [row["worse_than_best"] for row in verdict["ranking"]] == [False, holm[0] < 0.05, True]


def test_the_number_of_further_seeds_is_the_smallest_that_decides() -> None:
    def after(count: int) -> dict[str, Any]:
        return judged(flat_cells({"a": spread(2.0, 0.05, count), "b": spread(2.04, 0.05, count)}))

    more = after(4)["further_seeds"]
    assert more > 1
    assert after(4 + more)["outcome"] == "winner" and after(4 + more - 1)["outcome"] == "undecided"


def test_the_number_of_further_seeds_is_a_range_below_three_degrees_of_freedom() -> None:
    verdict = judged(flat_cells({"a": spread(2.0, 0.05, 2), "b": spread(2.04, 0.05, 2)}))
    low, high = verdict["further_seeds"]
    assert 1 <= low < high
    assert f"about {low} to {high} more seeds per backbone" in verdict["sentence"]


def test_seeds_are_not_advised_where_item_noise_stands_in_the_way() -> None:
    noise = [1.0, -1.0] * 10
    cells = [cell("a", s, [20 + 0.01 * s] * 20) for s in range(3)]
    cells += [cell("b", s, [20.2 + 3 * n + 0.01 * s for n in noise]) for s in range(3)]
    verdict = judged(cells, (np.full(20, 10.0), [f"g{i}" for i in range(20)]))
    assert verdict["outcome"] == "undecided" and verdict["further_seeds"] is None
    assert "more seeds alone would not decide" in verdict["sentence"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([cell("a", 0, [1, 2, 3])], r"a seed 0 has scores of shape \(3,\) for 2 held-out items"),
        ([cell("a", 0, [1, float("nan")])], "not finite"),
        ([cell("a", 0, [1, 2]), cell("a", 0, [1, 2])], "given twice"),
    ],
)
def test_scores_of_other_items_are_refused_with_the_remedy(cells: list[CellScores], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judged(cells)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 4), st.integers(2, 3))
def test_the_order_of_cells_changes_nothing(random: Any, backbones: int, seeds: int) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    cells, items = simulated(rng, offsets=[0.01 * k for k in range(backbones)], seeds=seeds, groups=6)
    shuffled = random.sample(cells, len(cells))
    assert judged(shuffled, items) == judged(cells, items)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_scaling_the_totals_scales_the_scores_and_keeps_the_verdict(seed: int, scale: float) -> None:
    cells, items = simulated(np.random.default_rng(seed), offsets=(0.0, 0.01, 0.02), groups=6)
    before = judged(cells, items)
    after = judged([CellScores(c.backbone_id, c.seed, c.totals * scale) for c in cells], items)
    assert after["outcome"] == before["outcome"] and after["further_seeds"] == before["further_seeds"]
    for one, other in zip(before["pairs"], after["pairs"], strict=True):
        assert other["difference"] == pytest.approx(scale * one["difference"])
        assert other["interval"] == pytest.approx([scale * end for end in one["interval"]])
        assert other["p_value"] == pytest.approx(one["p_value"])


def replicated(rng: np.random.Generator, setting: dict[str, Any], replicates: int) -> list[Any]:
    return [simulated(rng, **setting) for _ in range(replicates)]


def test_a_large_true_difference_is_found() -> None:
    setting = {"offsets": (0.0, 0.1, 0.1), "seed_std": 0.01, "group_std": 0.03}
    found = [judged(cells, items) for cells, items in replicated(np.random.default_rng(5), setting, 50)]
    assert np.mean([verdict["winner"] == "b0" for verdict in found]) > 0.95


def test_importing_the_verdict_does_not_import_scipy() -> None:
    code = "import sys, jobs.results.judging.verdict; sys.exit('scipy' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
