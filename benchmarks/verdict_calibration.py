"""How often the verdict names a winner among identical backbones, and its power beside an oracle.

    python -m benchmarks.verdict_calibration --replicates 2000

False winners must stay below alpha + 3 sqrt(alpha (1 - alpha) / replicates) in every row. For power, the first backbone
is made better by four true standard errors of its difference. The oracle is a z test that knows that standard error.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from math import log, sqrt

import numpy as np

from jobs.results.paired_tests import Array, CellScores
from jobs.results.verdict import judge

ALPHA, GROUPS, ITEMS_PER_GROUP = 0.05, 24, 4
# Deviations in bits per byte at 2 bits per byte: per seed, per seed and item, per source group, per item.
NOISE = {
    "seeds": (0.05, 0.0, 0.0, 0.01),
    "items": (0.001, 0.0, 0.0, 0.2),
    "clustered": (0.001, 0.0, 0.1, 0.05),
    "both": (0.02, 0.0, 0.08, 0.05),
    "seed x item": (0.0, 0.1, 0.0, 0.01),
}


@dataclass(frozen=True)
class Setting:
    """One row of the table; `noisy` multiplies the seed deviation of the first backbone."""

    backbones: int
    seeds: int
    noise: str
    lognormal: bool
    noisy: float


@dataclass(frozen=True)
class Sample:
    """One replicate of a comparison of identical backbones."""

    item_bytes: Array  # (items,)
    groups: list[str]  # (items,)
    bits: Array  # (backbones, seeds, items)

    @property
    def means(self) -> Array:
        """(backbones,) bits per byte."""
        return np.asarray(self.bits.mean(axis=1).sum(axis=1) / self.item_bytes.sum())

    def cells(self, lead: float) -> list[CellScores]:
        """The cells, with the first backbone `lead` bits per byte better."""
        nats = self.bits * log(2)
        nats[0] -= lead * self.item_bytes * log(2)
        return [CellScores(f"b{k}", s, nats[k, s]) for k, s in np.ndindex(*nats.shape[:2])]


def sample(rng: np.random.Generator, setting: Setting) -> Sample:
    """Groups of log-normal size; scores vary with backbone x group, backbone x item, seed and seed x item."""
    seed_std, shared_std, group_std, item_std = NOISE[setting.noise]
    count, shape = GROUPS * ITEMS_PER_GROUP, (setting.backbones, setting.seeds)
    group = np.repeat(np.arange(GROUPS), ITEMS_PER_GROUP)
    item_bytes = np.round(np.exp(rng.normal(5, 0.5, count))) + 1
    difficulty = np.exp(rng.normal(0, 0.7, count)) if setting.lognormal else 1 + 0.2 * rng.normal(size=count)
    own = group_std * rng.normal(size=(setting.backbones, GROUPS))[:, group]
    own += item_std * rng.normal(size=(setting.backbones, count))
    deviations = np.array([setting.noisy] + [1.0] * (setting.backbones - 1))
    effect = seed_std * deviations[:, None] * rng.normal(size=shape)
    rates = 2 + own[:, None, :] + effect[:, :, None] + shared_std * rng.normal(size=(*shape, count))
    return Sample(item_bytes, [f"g{g}" for g in group], item_bytes * difficulty * rates)


def rates(rng: np.random.Generator, setting: Setting, replicates: int) -> tuple[float, float, float]:
    """Shares of replicates with a false winner, with the true winner found, and with it found by the oracle."""
    samples = [sample(rng, setting) for _ in range(replicates)]
    means = np.array([one.means for one in samples])
    truth = np.std(means[:, 1:] - means[:, :1], axis=0)  # (backbones - 1,) standard errors against the first
    lead = 4 * float(truth.max())
    oracle = np.all((means[:, 1:] - means[:, :1] + lead) / truth > 1.959964, axis=1)
    won = {true_lead: [winner(one, true_lead) for one in samples] for true_lead in (0.0, lead)}
    false_winners = np.mean([name is not None for name in won[0.0]])
    return float(false_winners), float(np.mean([name == "b0" for name in won[lead]])), float(np.mean(oracle))


def winner(one: Sample, lead: float) -> str | None:
    """The verdict's winner; without a margin, since a tie is no winner either way."""
    verdict = judge(one.cells(lead), one.item_bytes, one.groups, alpha=ALPHA, margin=0.0)
    name: str | None = verdict["winner"]
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibration and power of the verdict.")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, bound = np.random.default_rng(arguments.seed), ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / arguments.replicates)
    print(f"alpha {ALPHA}, {arguments.replicates} replicates, false winners allowed: {bound:.4f}\n")
    print(
        f"{'backbones':>9} {'seeds':>5} {'noise':<12} {'difficulty':<10} {'noisy':>5} {'false':>7} {'power':>6} oracle"
    )
    worst = 0.0
    for values in product((2, 4, 8), (2, 3, 5, 10), NOISE, (False, True), (1.0, 3.0)):
        setting = Setting(*values)
        false_winners, power, oracle = rates(rng, setting, arguments.replicates)
        worst = max(worst, false_winners)
        print(
            f"{setting.backbones:>9} {setting.seeds:>5} {setting.noise:<12} "
            f"{'log-normal' if setting.lognormal else 'Gaussian':<10} {setting.noisy:>5g} "
            f"{false_winners:>7.4f} {power:>6.3f} {oracle:>6.3f}{'  ABOVE' if false_winners > bound else ''}",
            flush=True,
        )
    print(f"\nworst rate of false winners: {worst:.4f} ({'within' if worst <= bound else 'ABOVE'} {bound:.4f})")


if __name__ == "__main__":
    main()
