"""Training on a Ray cluster: shares of the runs are dealt out to its workers, and joined when all are trained.

A share whose worker dies goes on elsewhere, from its newest checkpoint. All machines must see the cohort, the cache and the run folder
under the same paths.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mil_jax.api import Run, fit_config, merge
from mil_jax.cli.arguments import TrainFlags
from mil_jax.cli.console import console, say
from mil_jax.cli.ray_cluster import ray_cluster, worker_share
from mil_jax.errors import ConfigError, TrainingError, UserError
from mil_jax.run_folder.folder import is_run_folder, require_usable

MOST_TRIES = 3


def fit_on_ray(config: ConfigDict, how: TrainFlags, workers: int, address: str) -> Run:
    """As `fit_config`, by so many workers; 0: one for each GPU of the cluster, or each machine where there is none.

    Raises UserError as `fit_config`, ConfigError as `ray_cluster`, and TrainingError where a share's workers keep dying.
    """
    target = Path(config.run or f"runs/{config.name}")
    home = target.with_name(f"{target.name}.shares")
    if how.overwrite:
        raise ConfigError("--overwrite does not go with --engine=ray: name another run folder with --config.run")
    require_usable(target, resume=how.resume)
    if home.exists() and not how.resume:
        raise ConfigError(f"{home} holds shares of a training that has not ended: go on with --resume, or remove it")
    if not is_run_folder(target):
        with ray_cluster(address) as ray:
            _train_shares(ray, config, how, _count(ray, home, workers), home)
    shares = sorted(home.iterdir()) if home.exists() else [target]
    run = merge(shares, target)
    shutil.rmtree(home, ignore_errors=True)
    return run


def _count(ray: Any, home: Path, workers: int) -> int:
    """How many shares: as many as there are from before, or as asked."""
    begun = [int(path.name.partition("_of_")[2]) for path in home.glob("*_of_*")]
    return next(iter(begun), 0) or workers or int(ray.cluster_resources().get("GPU", 0)) or len(ray.nodes())


def _train_shares(ray: Any, config: ConfigDict, how: TrainFlags, count: int, home: Path) -> None:
    room = worker_share(ray, count)
    train = ray.remote(num_cpus=room["CPU"], num_gpus=room["GPU"], max_calls=1, max_retries=0)(train_share)
    tries: Counter[int] = Counter()
    running: dict[Any, int] = {}
    waiting = list(range(count, 0, -1))
    while waiting or running:
        while waiting:
            number = waiting.pop()
            tries[number] += 1
            folder = home / f"{number:04d}_of_{count}"
            running[train.remote(str(Path.cwd()), config.to_dict(), str(folder), how.strict, (number, count))] = number
        (ready, *_), _ = ray.wait(list(running))
        number = running.pop(ready)
        try:
            ended = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError:  # of its worker, or its machine
            ended = False
        if ended:
            say(f"Share {number} of {count} is trained.")
        elif tries[number] < MOST_TRIES:
            say(f"The worker of share {number} of {count} has died; another one goes on.")
            waiting.append(number)
        else:
            raise TrainingError(
                f"share {number} of {count}: its worker died {MOST_TRIES} times; look at its memory, and go on with --resume"
            )


def train_share(cwd: str, settings: dict[str, Any], folder: str, strict: bool, share: tuple[int, int]) -> bool:
    """What a worker does. False where it was told to stop before the end."""
    from mil_jax.engine.callbacks import TrainingInterrupted

    os.chdir(cwd)
    console.quiet = True
    try:
        fit_config(ConfigDict({**settings, "run": folder}), TrainFlags(resume=True, strict=strict, share=share))
    except TrainingInterrupted:
        return False
    return True
