"""The rollouts of a cell, by its sharded model where it was trained. Collective."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from orchestrator.cell_job import RolloutRequest
from orchestrator.environments.environment import ROLLED_OUT, episode_seed
from orchestrator.environments.fleet import Fleet
from orchestrator.layout import CellFolder
from orchestrator.rollouts.film import frames_of, write_film
from orchestrator.rollouts.play import LANES, Episode, Gang, OnMesh, Policy, play
from orchestrator.rollouts.policies import BackbonePolicy, RandomPolicy, with_other_instructions
from orchestrator.rollouts.results import BLIND, RANDOM, TRAINED, collect, figures, write_results
from orchestrator.training.run import CellRun
from orchestrator.training.stages import obey


def find(run: CellRun) -> None:
    """Begins an episode, before anything is trained. Raises InputError and EnvironmentFailedError."""
    assert run.job.rollouts is not None
    run.recorder.phase("opening the environment")
    with Fleet(run.job.rollouts.environment, processes=1) as fleet:
        fleet.reset({0: 0})


def roll_out(run: CellRun) -> None:
    """Plays the episodes; the figures join the measurement, the episodes and two films stand in files of the cell.

    Raises CancelledError and TimedOutError between two steps; the checkpoint of the last step is there to go on from.
    """
    job, cell, backbone = run.job, run.job.cell, run.trainee.backbone
    assert job.rollouts is not None and job.prepared is not None and job.prepared.actions is not None
    run.recorder.phase("rolling out")
    run.pulse.rest("rolling out", run.position.seen.steps)

    backbone.llm.eval()
    policy = BackbonePolicy(backbone, cell.backbone, job.prepared.actions.statistics, run.mesh.device)
    with Fleet(job.rollouts.environment, min(cell.placement.cpus_per_worker, LANES)) as fleet:
        played = play_all(policy, fleet, job.rollouts, OnMesh(run.mesh, partial(obey, run)))
        if run.mesh.is_main:
            film(fleet, played[TRAINED], *CellFolder(job.folder).films)
    backbone.llm.train()
    results = collect(job.rollouts, played)
    run.metrics |= figures(results)
    run.facts["rollouts"] = job.rollouts.digest
    if run.mesh.is_main:
        write_results(CellFolder(job.folder).rollouts, results, cell_id=cell.cell_id)


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


def seeds_of(asked: RolloutRequest) -> list[int]:
    """Of its episodes."""
    return [episode_seed(ROLLED_OUT, asked.seed, number) for number in range(asked.episodes)]


def film(fleet: Fleet, episodes: Sequence[Episode], success: Path, failure: Path) -> None:
    """The first episode that succeeded and the first that did not, where there are such."""
    for succeeded, file in ((True, success), (False, failure)):
        file.unlink(missing_ok=True)
        first = next((episode for episode in episodes if episode.success is succeeded), None)
        if first is not None:
            write_film(file, frames_of(fleet, first))
