"""Killed at random points, then run again until done: weights, scores and every metric as if nothing had been.

Five of such runs belong to `make test`. `make chaos` makes fifty; its log, a line a run, stays in benchmarks/results/:

    KILLS=50 KILLS_SEED=7 make chaos
"""

import json
import os
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from product import ROOT, Job, write_job
from random_kills import AT_ONCE, BOTH, KINDS, SPEC, Blow, Facts, facts_of, run_through, strike_and_compare

FEW = ("save", "driver", "between cells", "batch", "manifest")
MANY = int(os.environ.get("KILLS", "50"))
SEED = int(os.environ.get("KILLS_SEED", "20261127"))
LOG = ROOT / "benchmarks" / "results" / f"random-kills-{datetime.now(UTC):%Y-%m-%d}.jsonl"
LONGEST_S = 1200.0  # of one run, on a busy machine
Strike = Callable[[tuple[int, Blow]], dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Facts]]:
    """What the same cells leave where nobody disturbs them."""
    job = write_job(tmp_path_factory.mktemp("undisturbed"), seeds=BOTH, **SPEC)
    try:
        assert run_through(job, None) == [0]
        yield facts_of(job)
    finally:
        job.kill_leftovers()


@pytest.fixture
def strike(new_job: Callable[..., Job], undisturbed: dict[str, Facts]) -> Strike:
    """One numbered run under a blow, held against the undisturbed one."""
    return lambda numbered: strike_and_compare(new_job, f"run-{numbered[0]:02d}", numbered[1], undisturbed)


def all_struck(strike: Strike, blows: Sequence[Blow]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What became of each run, by its number from 1, in their order. Raises what the first of them raises."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield from enumerate(pool.map(strike, enumerate(blows, start=1)), start=1)
        finally:
            pool.shutdown(cancel_futures=True)


def test_runs_killed_at_random_points_end_as_if_nothing_had_been(strike: Strike) -> None:
    blows = [Blow.draw(kind, random.Random(seed)) for seed, kind in enumerate(FEW)]
    assert [number for number, _ in all_struck(strike, blows)] == [1, 2, 3, 4, 5]


@pytest.mark.chaos
@pytest.mark.timeout(MANY * LONGEST_S)
def test_fifty_runs_killed_at_random_points_end_as_if_nothing_had_been(
    strike: Strike, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    kinds = rng.sample(KINDS * (MANY // len(KINDS) + 1), MANY)  # each about as often
    note(LOG, {"seed": SEED, "runs": MANY, "machine": platform.platform(), "cores": os.cpu_count()}, "w")
    for number, struck in all_struck(strike, [Blow.draw(kind, rng) for kind in kinds]):
        note(LOG, {"run": number, "logged": datetime.now(UTC).isoformat(timespec="seconds"), **struck})
        with capsys.disabled():
            print(f"{number:3d} {struck['seconds']:6.0f} s  {struck['blow']}  {struck['restarts']}", flush=True)


def note(file: Path, facts: dict[str, object], mode: str = "a") -> None:
    """A line of the log, there as soon as its run is over."""
    with open(file, mode, encoding="utf-8") as stream:
        stream.write(json.dumps(facts) + "\n")
