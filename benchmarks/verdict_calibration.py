"""How often the verdict names a winner among identical backbones, and its power beside an oracle.

    python -m benchmarks.verdict_calibration --replicates 2000 --json benchmarks/results/verdict-calibration-DATE.json

False winners must stay below alpha + 3 sqrt(alpha (1 - alpha) / replicates) in every row. For power, the first backbone
is made better by four true standard errors of its difference. The oracle is a z test that knows that standard error.
`shared` is the share of the seed variance that is common to all backbones. In the rows of tuning every backbone chooses
one of five learning rates by a trial of each, whose seed deviation is `trial_noise` times a run's; scores lie on one
parabola, `curve` seed deviations high one step from its bottom. The rows of looks begin with two seeds and
add one at a time until a winner is named: as `decide` does, with its levels and its early stops, or by hand.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from jobs.results.judging.choice_noise import Choice, find_choice_noise
from jobs.results.judging.paired_tests import (
    PairTests,
    find_beaten,
    measure_item_noise,
    model_seeds,
    rank_backbones,
    run_pair_tests,
)
from jobs.results.judging.seed_noise import Array
from jobs.results.judging.spending import BY_HAND, nominal_levels
from jobs.results.judging.verdict import find_outcome

ALPHA, GROUPS, ITEMS_PER_GROUP = 0.05, 24, 4
FIRST, MOST = 2, 8  # seeds of the first and of the last look
# Deviations in bits per byte at 2 bits per byte: per seed, per seed and item, per source group, per item.
NOISE = {
    "seeds": (0.05, 0.0, 0.0, 0.01),
    "items": (0.001, 0.0, 0.0, 0.2),
    "clustered": (0.001, 0.0, 0.1, 0.05),
    "both": (0.02, 0.0, 0.08, 0.05),
    "seed x item": (0.0, 0.1, 0.0, 0.01),
}
SHARED = {"seeds": (0.0, 0.5, 0.9), "both": (0.0, 0.9)}  # where seeds matter; elsewhere none


@dataclass(frozen=True)
class Setting:
    """One row of the table; `noisy` multiplies the seed deviation of the first backbone."""

    backbones: int
    seeds: int
    noise: str
    lognormal: bool = False
    noisy: float = 1.0
    shared: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One replicate of a comparison of identical backbones."""

    group_bytes: Array  # (groups,)
    bits: Array  # (backbones, seeds, groups)

    @property
    def means(self) -> Array:
        """(backbones,) bits per byte."""
        return np.asarray(self.bits.mean(axis=1).sum(axis=1) / self.group_bytes.sum())

    def test(
        self, alpha: float, lead: float = 0.0, counts: list[int] | None = None, tuned: "Tuned | None" = None
    ) -> tuple[PairTests, list[str]]:
        """The tests, the first backbone `lead` bits per byte better, after `counts` seeds of each."""
        bits = {}
        for k, of_seeds in enumerate(self.bits):
            better = lead * self.group_bytes if k == 0 else 0.0
            if tuned is not None:
                better -= tuned.lost[k] * self.group_bytes
            seeds = range(len(of_seeds) if counts is None else counts[k])
            bits[f"b{k}"] = {str(seed): of_seeds[seed] - better for seed in seeds}
        standings, noise = model_seeds(rank_backbones(bits, self.group_bytes))
        choice = None if tuned is None else find_choice_noise(tuned.choice, standings.ids, standings.pooled)
        tests = run_pair_tests(standings, noise, measure_item_noise(standings), alpha, limit=0.0, choice=choice)
        return tests, standings.ids


@dataclass(frozen=True)
class Tuned:
    """What choosing learning rates did to a replicate."""

    lost: Array  # (backbones,) bits per byte against the best learning rate
    choice: Choice


RATES = 5  # of each backbone's trials


def tune(rng: np.random.Generator, setting: Setting, curve: float, trial_noise: float) -> Tuned:
    """Trials of identical backbones; how much seeds change them is estimated from as many runs as are judged."""
    seed_std = NOISE[setting.noise][0]
    steps = np.arange(RATES) - (RATES - 1) / 2 - rng.uniform(-0.5, 0.5)
    truth = curve * seed_std * steps**2
    scores = truth + trial_noise * seed_std * rng.normal(size=(setting.backbones, RATES))
    best, second = np.sort(scores, axis=1)[:, :2].T
    early = trial_noise * seed_std * rng.normal(size=(setting.backbones, setting.seeds))
    gaps = {f"b{k}": float(gap) for k, gap in enumerate(second - best)}
    return Tuned(truth[scores.argmin(axis=1)], Choice(gaps, float(early.var(axis=1, ddof=1).mean())))


def sample(rng: np.random.Generator, setting: Setting) -> Sample:
    """Groups of log-normal size; scores vary with backbone x group, backbone x item, seed and seed x item."""
    seed_std, own_std, group_std, item_std = NOISE[setting.noise]
    count, shape = GROUPS * ITEMS_PER_GROUP, (setting.backbones, setting.seeds)
    group = np.repeat(np.arange(GROUPS), ITEMS_PER_GROUP)
    item_bytes = np.round(np.exp(rng.normal(5, 0.5, count))) + 1
    difficulty = np.exp(rng.normal(0, 0.7, count)) if setting.lognormal else 1 + 0.2 * rng.normal(size=count)
    own = group_std * rng.normal(size=(setting.backbones, GROUPS))[:, group]
    own += item_std * rng.normal(size=(setting.backbones, count))
    deviations = np.array([setting.noisy] + [1.0] * (setting.backbones - 1))
    common = sqrt(setting.shared) * rng.normal(size=setting.seeds)
    effect = seed_std * deviations[:, None] * (common + sqrt(1 - setting.shared) * rng.normal(size=shape))
    rates = 2 + own[:, None, :] + effect[:, :, None] + own_std * rng.normal(size=(*shape, count))
    bits = (item_bytes * difficulty * rates).reshape(*shape, GROUPS, ITEMS_PER_GROUP).sum(axis=-1)
    return Sample(item_bytes.reshape(GROUPS, ITEMS_PER_GROUP).sum(axis=-1), bits)


def rates(rng: np.random.Generator, setting: Setting, replicates: int) -> tuple[float, float, float]:
    """Shares of replicates with a false winner, with the true winner found, and with it found by the oracle."""
    samples = [sample(rng, setting) for _ in range(replicates)]
    means = np.array([one.means for one in samples])
    truth = np.std(means[:, 1:] - means[:, :1], axis=0)  # (backbones - 1,) standard errors against the first
    lead = 4 * float(truth.max())
    oracle = np.all((means[:, 1:] - means[:, :1] + lead) / truth > 1.959964, axis=1)
    false_winners = np.mean([winner(one, 0.0) is not None for one in samples])
    return float(false_winners), float(np.mean([winner(one, lead) == "b0" for one in samples])), float(np.mean(oracle))


def winner(one: Sample, lead: float, tuned: Tuned | None = None) -> str | None:
    """The verdict's winner; without a margin, since a tie is no winner either way."""
    tests, ids = one.test(ALPHA, lead, tuned=tuned)
    return ids[0] if find_outcome(tests, ALPHA)[0] == "winner" else None


LEVELS = nominal_levels(ALPHA, [seeds / MOST for seeds in range(FIRST, MOST + 1)])


def decided(one: Sample) -> bool:
    """Whether `decide` names a winner at one of its looks; who is clearly worse gets no further seeds."""
    counts = [FIRST] * len(one.bits)
    for seeds, level in enumerate(LEVELS, FIRST):
        tests, ids = one.test(level, counts=counts)
        if find_outcome(tests, level)[0] == "winner":
            return True
        stopped = {ids[row] for row in find_beaten(tests, level)}
        counts = [count if f"b{k}" in stopped else seeds + 1 for k, count in enumerate(counts)]
    return False


def peeked(one: Sample) -> bool:
    """Whether somebody who adds a seed by hand until there is a winner gets one."""
    left = ALPHA
    for seeds in range(FIRST, MOST + 1):
        tests, _ = one.test(BY_HAND * left, counts=[seeds] * len(one.bits))
        if find_outcome(tests, BY_HAND * left)[0] == "winner":
            return True
        left -= BY_HAND * left
    return False


def settings_of_one_look(backbones: int) -> Iterator[Setting]:
    """Every setting of shared/design/comparison.md, and the shared seeds."""
    for seeds in (2, 3, 5, 10):
        for noise in NOISE:
            for shared in SHARED.get(noise, (0.0,)):
                for lognormal in (False, True):
                    for noisy in (1.0, 3.0):
                        yield Setting(backbones, seeds, noise, lognormal, noisy, shared)


def settings_of_looks() -> Iterator[Setting]:
    """Fewer: a replicate has up to seven verdicts."""
    for backbones in (2, 4):
        for noise in ("seeds", "items", "both"):
            for shared in SHARED.get(noise, (0.0,)):
                for noisy in (1.0, 3.0):
                    yield Setting(backbones, MOST, noise, False, noisy, shared)


def rows_of_looks(rng: np.random.Generator, replicates: int) -> Iterator[dict[str, Any]]:
    """False winners with looks."""
    for setting in settings_of_looks():
        samples = [sample(rng, setting) for _ in range(replicates)]
        row = {"decide": float(np.mean([decided(one) for one in samples]))}
        yield {**asdict(setting), **row, "by_hand": float(np.mean([peeked(one) for one in samples]))}


def rows_of_tuning(rng: np.random.Generator, replicates: int) -> Iterator[dict[str, Any]]:
    """False winners where each backbone trains at the rate that its trials chose, and power as elsewhere."""
    for backbones in (2, 4):
        for seeds in (2, 3, 5, 10):
            setting = Setting(backbones, seeds, "seeds")
            lead = 4 * NOISE["seeds"][0] * sqrt(2 / seeds)
            for curve in (0.3, 1.0, 3.0, 10.0):
                for trial_noise in (1.0, 2.0):
                    pairs = [(sample(rng, setting), tune(rng, setting, curve, trial_noise)) for _ in range(replicates)]
                    yield {
                        **asdict(setting),
                        "curve": curve,
                        "trial_noise": trial_noise,
                        "false_winners": float(np.mean([winner(one, 0.0, how) is not None for one, how in pairs])),
                        "unseen": float(np.mean([winner(one, 0.0, blind(how)) is not None for one, how in pairs])),
                        "power": float(np.mean([winner(one, lead, how) == "b0" for one, how in pairs])),
                    }


def blind(tuned: Tuned) -> Tuned:
    """The same to a verdict that does not know of the choice."""
    return Tuned(tuned.lost, Choice({}, 0.0))


def rows_of_one_look(rng: np.random.Generator, backbones: int, replicates: int) -> Iterator[dict[str, Any]]:
    """False winners and power of one verdict."""
    for setting in settings_of_one_look(backbones):
        false_winners, power, oracle = rates(rng, setting, replicates)
        yield {**asdict(setting), "false_winners": false_winners, "power": power, "oracle": oracle}


PARTS = {"2": 2, "4": 4, "8": 8, "looks": 0, "tuning": 1}  # name -> stream of random numbers


def rows_of(part: str, rng: np.random.Generator, replicates: int) -> Iterator[dict[str, Any]]:
    """A part of the table."""
    if part == "looks":
        return rows_of_looks(rng, replicates)
    if part == "tuning":
        return rows_of_tuning(rng, replicates)
    return rows_of_one_look(rng, int(part), replicates)


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibration and power of the verdict.")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--json", type=Path, help="Where rows are kept; those of other parts stay.")
    arguments = parser.parse_args()
    bound = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / arguments.replicates)
    kept = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {"parts": {}}
    worst = 0.0
    print(f"alpha {ALPHA}, {arguments.replicates} replicates, false winners allowed: {bound:.4f}", flush=True)
    for part in arguments.parts:
        rng = np.random.default_rng([arguments.seed, PARTS[part]])
        found = []
        for row in rows_of(part, rng, arguments.replicates):
            found.append(row)
            rate = max(value for key, value in row.items() if key in ("false_winners", "decide", "by_hand"))
            worst = max(worst, rate)
            written = " ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(f"{written}{'  ABOVE' if rate > bound else ''}", flush=True)
        kept["parts"][part] = {"replicates": arguments.replicates, "bound": bound, "rows": found}
        if arguments.json:
            kept |= {"alpha": ALPHA, "created": datetime.now(UTC).isoformat(timespec="seconds")}
            arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\nworst rate of false winners: {worst:.4f} ({'within' if worst <= bound else 'ABOVE'} {bound:.4f})")


if __name__ == "__main__":
    main()
