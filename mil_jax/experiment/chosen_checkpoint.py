"""What a run leaves for later: its chosen parameters, the ids it was trained on, and its task with what the training part tells."""

from __future__ import annotations

from mil_jax.data.splits.splits import TRAIN
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.types import FitResult
from mil_jax.experiment.experiment import Experiment
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.base import Task, fitted


def run_task(experiment: Experiment, r: int, result: FitResult) -> Task:
    """The task of run number r, with all that it learnt from its training part."""
    replica = experiment.plan.replicas[r]
    target, row = experiment.targets[replica.target], experiment.row(replica)
    task = fitted(target.task, target.values[experiment.parts[row] == TRAIN])
    if "train" not in result.logits[r]:
        return task
    return task.fit_predictions(result.logits[r]["train"], target.values[result.bags[r]["train"]])


def save_final(experiment: Experiment, folder: RunFolder, result: FitResult) -> None:
    """The chosen parameters of every run, with the ids they were trained and selected on."""
    ids = experiment.cohort.bags["bag_id"].to_numpy()
    runs = [
        {
            **experiment.columns.field(replica.target),
            "fold": experiment.targets[replica.target].splits.names[replica.fold],
            "seed": replica.seed,
            "epoch": int(result.progress.best_epoch[r]),
            "learnt": run_task(experiment, r, result).of_run(),
            "training": ids[experiment.parts[row] == TRAIN].tolist(),
            "validation": ids[experiment.parts[row] == experiment.selection_part].tolist(),
        }
        for r, replica in enumerate(experiment.plan.replicas)
        for row in [experiment.row(replica)]
    ]
    checkpoints = Checkpoints(folder.checkpoints / "final", seconds=0)
    params, constants = result.state
    checkpoints.save(0, {"params": params, "constants": constants}, {"runs": runs}, wait=True)
    checkpoints.close()
