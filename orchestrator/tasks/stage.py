"""The tasks of a cell, asked of its sharded model where it was trained. Collective."""

import os
from functools import partial

from orchestrator.tasks.harness import open_tasks, run_tasks, without_advice
from orchestrator.training.run import CellRun
from orchestrator.training.stages import obey

BOOTSTRAP_DRAWS = 1000  # the other ranks wait for them; a standard error is off by about 2 %


def find(run: CellRun) -> None:
    """Looks the tasks up and loads their data, before anything is trained. Raises InputError and TasksError."""
    assert run.job.tasks is not None
    run.recorder.phase("opening tasks")
    run.tasks = open_tasks(run.job.tasks.names, run.job.tasks.include_path)


def ask(run: CellRun) -> None:
    """Asks the trained model; the figures join the measurement, and the items stand in a file of the cell.

    Raises CancelledError and TimedOutError between two batches; the checkpoint of the last step is there to go on from.
    """
    from orchestrator.tasks.sharded import SHORTEST_WINDOW, ShardedModel

    job, cell, backbone = run.job, run.job.cell, run.trainee.backbone
    assert job.tasks is not None
    run.recorder.phase("answering tasks")
    run.pulse.rest("answering tasks", run.position.seen.steps)
    length = max(cell.recipe.sequence_length, min(cell.backbone.context_length, SHORTEST_WINDOW))

    os.environ["DISABLE_MULTIPROC"] = "1"  # the library would fork a process that has threads and a device
    with without_advice():
        model = ShardedModel(backbone, run.mesh, cell.micro_batch_size, length, partial(obey, run))
    results = run_tasks(model, run.tasks, draws=BOOTSTRAP_DRAWS if run.mesh.is_main else 0)
    backbone.llm.train()
    run.metrics |= results.metrics
    run.facts["tasks"] = job.tasks.digest
    if run.mesh.is_main:
        facts = {"cell_id": cell.cell_id, "batch_size": cell.micro_batch_size, "max_length": length}
        results.write(job.folder, **facts)
