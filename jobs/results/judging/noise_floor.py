"""What a backbone against itself shows: the smallest difference that would be called a win, and whether one was."""

from jobs.results.documents import NoiseFloor, Verdict


def add_noise_floor(verdict: Verdict) -> None:
    """Says so in the verdict, in place of who won. A verdict without a pair is left as it is."""
    if not verdict["pairs"] or verdict["outcome"] == "no verdict":
        return
    pair = verdict["pairs"][0]
    low, high = pair["interval"]
    best = verdict["ranking"][0]["score"]
    seeds = len(verdict["ranking"][0]["seeds"])
    found: NoiseFloor = {
        "difference": (high - low) / 2,
        "relative": (high - low) / 2 / best,
        "false_winner": verdict["winner"],
    }
    verdict["noise_floor"] = found
    named = "no winner was named" if found["false_winner"] is None else f"{found['false_winner']} was named, falsely"
    verdict["sentence"] = (
        f"A/A: {named}. Noise floor: with {seeds} seeds each, a difference below {found['difference']:.2g} "
        f"({100 * found['relative']:.2g} %) would not be called a win."
    )
