"""Packing and dealing, planned on lengths alone: rows as full as the textbook's, shares that cost the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.order import examples_of_a_block
from orchestrator.data.packing import deal, pack

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=400)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's: one example at a time, into the fullest row with room."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@given(lengths=LENGTHS)
def test_packing_is_best_fit_decreasing(lengths: list[int]) -> None:
    row_of = pack(np.array(lengths), capacity=64)

    assert len(row_of) == len(lengths)
    # Which of two equally full rows is taken is open, so it is how full they are that must agree.
    assert sorted(np.bincount(row_of, lengths)) == sorted(map(sum, best_fit_decreasing(lengths, 64)))


@pytest.mark.parametrize(("mean", "capacity"), [(80, 512), (80, 2048), (200, 2048), (200, 8192), (500, 8192)])
def test_a_block_of_log_normal_lengths_fills_its_rows(mean: int, capacity: int) -> None:
    count = examples_of_a_block(capacity, 1_000_000)
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - 0.32, 0.8, count)
    lengths = np.clip(drawn.astype(np.int64), 8, capacity)

    row_of = pack(lengths, capacity)

    assert np.bincount(row_of, lengths).max() <= capacity
    assert lengths.sum() / ((row_of.max() + 1) * capacity) >= 0.999


COSTS = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[1]),
        st.lists(
            st.lists(st.integers(1, 10**6), min_size=shape[1] * shape[2], max_size=shape[1] * shape[2]),
            min_size=shape[0],
            max_size=shape[0],
        ),
    )
)


@given(COSTS)
def test_dealt_shares_differ_by_no_more_than_the_costliest_row(drawn: tuple[int, list[list[int]]]) -> None:
    ranks, costs = drawn[0], np.array(drawn[1])

    dealt = deal(costs, ranks)

    assert (np.sort(dealt, axis=1) == np.arange(costs.shape[1])).all()
    shares = np.take_along_axis(costs, dealt, axis=1).reshape(len(costs), ranks, -1)
    sums = shares.sum(axis=2)
    assert (sums.max(axis=1) - sums.min(axis=1) <= costs.max(axis=1)).all()
    assert (np.diff(shares, axis=2) <= 0).all()  # so that the k-th micro-batches of all ranks are about alike
