"""The rollouts of a cell, by its sharded model where it was trained. Collective."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from orchestrator.cell_job import RolloutRequest
from orchestrator.environments.fleet import Fleet
from orchestrator.errors import InputError
from orchestrator.layout import CellFolder
from orchestrator.rollouts.curve import acting, beat, curve_of, fleet_of, record
from orchestrator.rollouts.film import frames_of, write_film
from orchestrator.rollouts.play import Episode, Gang, OnMesh, Policy, play
from orchestrator.rollouts.policies import RandomPolicy, seeds_of, with_other_instructions
from orchestrator.rollouts.results import BLIND, RANDOM, TRAINED, collect, figures, write_results
from orchestrator.training.run import CellRun
from orchestrator.training.stages import obey


def find(run: CellRun) -> None:
    """Begins an episode, before anything is trained, and has others played on the way where that is asked for.

    Raises InputError and EnvironmentFailedError.
    """
    asked = run.job.rollouts
    assert asked is not None and run.job.prepared is not None and run.job.prepared.actions is not None
    run.recorder.phase("opening the environment")
    with Fleet(asked.environment, processes=1) as fleet:
        require_dimensions(fleet, asked, run.job.prepared.actions.statistics.dimensions)
        fleet.reset({0: 0})
    if asked.every < 1:
        run.interlude = curve_of(run, asked)


def require_dimensions(fleet: Fleet, asked: RolloutRequest, learned: int) -> None:
    """Raises InputError where a robot takes another number of numbers than a policy has learned to give."""
    taken = len(fleet.draw({0: (0,)})[0])
    if taken != learned:
        raise InputError(
            f"an action of {asked.environment} has {taken} numbers, and one of the data that was learned from "
            f"{learned}; name the environment of that robot, or train on recordings of this one"
        )


def roll_out(run: CellRun) -> None:
    """Plays the episodes; the figures join the measurement, the episodes and two films stand in files of the cell.

    Raises CancelledError and TimedOutError between two steps; the checkpoint of the last step is there to go on from.
    """
    job, asked = run.job, run.job.rollouts
    assert asked is not None
    run.recorder.phase("rolling out")
    beat(run)

    with fleet_of(job, asked) as fleet, acting(run, asked) as policy:
        played = play_all(policy, fleet, asked, OnMesh(run.mesh, partial(_obey, run)))
        if run.mesh.is_main:
            film(fleet, played[TRAINED], *CellFolder(job.folder).films)
    results = collect(asked, played)
    found = figures(results)
    record(run, asked, found)
    run.metrics |= found
    run.facts["rollouts"] = asked.digest
    if run.mesh.is_main:
        facts = {"chunk": policy.chunk, "execute": policy.execute}
        write_results(CellFolder(job.folder).rollouts, results, cell_id=job.cell.cell_id, **facts)


def _obey(run: CellRun) -> None:
    beat(run)
    obey(run)


def play_all(policy: Policy, fleet: Fleet, asked: RolloutRequest, gang: Gang | None = None) -> dict[str, list[Episode]]:
    """The same episodes by the policy, by chance, and by the policy with the instruction of the next episode.

    The last of these tells what the instruction is good for; without it, where all episodes have the same. Collective.
    """
    seeds = seeds_of(asked)

    def by(acting: Policy) -> list[Episode]:
        return play(acting, fleet, seeds, gang, asked.max_steps)

    played = {TRAINED: by(policy), RANDOM: by(RandomPolicy(fleet))}
    told = [episode.instruction for episode in played[TRAINED]]
    if len(set(told)) > 1:
        others = dict(zip(seeds, [*told[1:], told[0]], strict=True))
        played[BLIND] = by(with_other_instructions(policy, others))
    return played


def film(fleet: Fleet, episodes: Sequence[Episode], success: Path, failure: Path) -> None:
    """The first episode that succeeded and the first that did not, where there are such."""
    for succeeded, file in ((True, success), (False, failure)):
        file.unlink(missing_ok=True)
        first = next((episode for episode in episodes if episode.success is succeeded), None)
        if first is not None:
            write_film(file, frames_of(fleet, first))
