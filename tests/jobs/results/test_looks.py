"""Alpha is spent over looks: the levels of declared ones, the rest for looks by hand, and which look a verdict is."""

import numpy as np
import pytest
from scipy.special import ndtr

from jobs.results.documents import LookRecord
from jobs.results.judging.looks import Judged, find_look, new_record, sentences_of
from jobs.results.judging.spending import BY_HAND, DECLARED, nominal_levels, spent_by


def judged(seeds: int, max_seeds: int | None = None, cells: str = "") -> Judged:
    return Judged(cells or f"{seeds} seeds", {"a": seeds, "b": seeds}, max_seeds, 0.05)


def looked(*all_judged: Judged) -> list[LookRecord]:
    records: list[LookRecord] = []
    for one in all_judged:
        records.append(new_record(one, find_look(one, records), "undecided", None))
    return records


def test_one_declared_look_may_use_all_of_alpha() -> None:
    assert nominal_levels(0.05, [1.0]) == pytest.approx([0.05])
    assert find_look(judged(3, max_seeds=3), [])["alpha"] == pytest.approx(0.05)


def test_the_levels_of_declared_looks_add_up_to_what_is_spent() -> None:
    looks = np.arange(1, 7)
    levels = nominal_levels(0.05, [look / 6 for look in looks])
    walks = np.random.default_rng(1).normal(size=(200_000, 6)).cumsum(axis=1) / np.sqrt(looks)
    crossed = (2 * ndtr(-np.abs(walks)) < levels).any(axis=1).mean()
    assert crossed == pytest.approx(DECLARED * 0.05, abs=0.0015)
    assert levels[0] == pytest.approx(spent_by(DECLARED * 0.05, 1 / 6))


def test_levels_match_pococks_published_constants_for_five_equal_looks() -> None:
    # Jennison and Turnbull 2000, table 2.1: constant 2.413 at alpha 0.05; the spending function comes close to it.
    levels = nominal_levels(0.05 / DECLARED, [look / 5 for look in range(1, 6)])
    assert levels == pytest.approx([2 * ndtr(-2.413)] * 5, rel=0.09)


def test_looks_by_hand_never_spend_more_than_alpha() -> None:
    records = looked(*(judged(seeds) for seeds in range(2, 12)))
    assert [record["number"] for record in records] == list(range(1, 11))
    assert records[0]["alpha"] == pytest.approx(BY_HAND * 0.05)
    assert sum(record["spent"] for record in records) <= 0.05 * (1 + 1e-12)


def test_declared_looks_spend_all_and_leave_nothing_for_more_seeds() -> None:
    records = looked(*(judged(seeds, max_seeds=5) for seeds in range(2, 7)))
    assert sum(record["spent"] for record in records[:4]) == pytest.approx(0.05)
    assert [record["declared"] for record in records] == [5, 5, 5, 5, None]
    assert records[4]["alpha"] == 0.0


def test_declaring_after_a_look_by_hand_shares_what_is_left() -> None:
    records = looked(judged(2), judged(3, max_seeds=5), judged(5, max_seeds=5))
    assert records[0]["spent"] == pytest.approx(0.04)
    assert sum(record["spent"] for record in records) == pytest.approx(0.05)
    assert records[1]["alpha"] == pytest.approx(spent_by(DECLARED * 0.01, 3 / 5))


def test_the_same_cells_again_are_the_same_look() -> None:
    records = looked(judged(2), judged(3), judged(4))
    again = find_look(judged(3), records)
    assert again["number"] == 2 and again["alpha"] == records[1]["alpha"] and again["earlier_seeds"] == [2]


def test_the_same_cells_under_another_alpha_are_tested_at_the_same_share_of_it() -> None:
    records = looked(judged(2), judged(3))
    again = find_look(Judged("3 seeds", {"a": 3, "b": 3}, None, 0.01), records)
    assert again["number"] == 2 and again["alpha"] == pytest.approx(records[1]["alpha"] / 5)


def test_a_look_says_what_it_is_and_whom_earlier_ones_named() -> None:
    first = new_record(judged(2), find_look(judged(2), []), "winner", "a")
    sentences = sentences_of(find_look(judged(3), [first]))
    assert sentences[0].startswith(
        "Look 2, a verdict over these runs, after looks at 2 seeds: tested at alpha 0.008 (by hand:"
    )
    assert sentences[1] == "Look 1 named a the winner."


def test_declared_looks_at_other_candidates_share_what_is_left_and_never_pass_alpha() -> None:
    grown = [Judged(f"grown {seeds}", {"a": seeds, "b": seeds, "c": seeds}, 5, 0.05) for seeds in (3, 4, 5)]
    records = looked(judged(2, max_seeds=5), judged(3, max_seeds=5), *grown)
    left = 0.05 - records[0]["spent"] - records[1]["spent"]
    assert records[2]["alpha"] == pytest.approx(spent_by(DECLARED * left, 3 / 5))
    assert sum(record["spent"] for record in records) == pytest.approx(0.05)


def test_a_look_that_took_all_of_alpha_leaves_none_for_another_candidate() -> None:
    records = looked(judged(3, max_seeds=3), Judged("grown", {"a": 3, "b": 3, "c": 3}, 3, 0.05))
    assert records[1]["alpha"] == 0.0
    raised = find_look(Judged("grown at 0.1", {"a": 3, "b": 3, "c": 3}, None, 0.1), records[:1])
    assert raised["alpha"] == pytest.approx(BY_HAND * 0.05)
