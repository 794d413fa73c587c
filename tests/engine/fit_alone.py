"""Trains the invented cohort in a process of its own: `python -m tests.engine.fit_alone JOB`, where the number of devices and
processes is the caller's to choose.

JOB is a JSON object; see `Job`. Written are the chosen parameters, the logits and the progress of all replicas as one .npz file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax.data.loading.resident import ResidentBags
from mil_jax.data.loading.sharded import ShardedBags
from mil_jax.data.loading.streamed import WINDOWS, StreamedBags
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.plan import Plan
from mil_jax.engine.types import EngineSettings, Phase
from mil_jax.interop.slide_bag import SlideBag
from tests.engine.cohorts import HYPER, TASK, Silent, engine_data, plan, strategy

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0  # of a process that hangs


@dataclass(frozen=True)
class Job:
    """out: the file to write. devices: simulated on the CPU, of each process. replicas: of 5 folds x 5 seeds, the first so many.

    checkpoints: their folder, "" for none. stop_after: dispatches. settings: of EngineSettings. kind: of the bags, ResidentBags or, from
    shards that are written beside `out`, StreamedBags or ShardedBags.
    """

    out: str
    devices: int = 1
    replicas: int = 5
    epochs: int = 1
    checkpoints: str = ""
    stop_after: int = 10**9
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "ResidentBags"


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process with so many devices on the CPU."""
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Each of these programs is compiled once in a session of tests, whichever process needs it first.
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def fit_alone(*jobs: Job) -> list[dict[str, np.ndarray]]:
    """Runs jobs side by side, each in its own process. A job that is stopped gives {}."""
    processes = []
    for job in jobs:
        command = [sys.executable, "-m", "tests.engine.fit_alone", json.dumps(dataclasses.asdict(job))]
        environment = simulated(job.devices)
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    results = []
    try:
        for job, process in zip(jobs, processes, strict=True):
            output, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, output.decode()
            results.append(dict(np.load(job.out)))
    finally:
        for process in processes:
            process.kill()
    return results


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def _in_shards(bags: ResidentBags, job: Job) -> StreamedBags:
    """The same bags, in shards, with windows of at most two steps of a run."""
    features, longest = np.asarray(bags.features), 16
    slides = [
        SlideBag(f"{number}", features[at : at + n]) for number, (at, n) in enumerate(zip(bags.offsets, bags.sizes))
    ]
    folder = Path(job.out).with_suffix(".shards")
    write_shards(slides, folder, for_tensorflow=False)
    row_bytes = features[0].nbytes + 12
    most_bytes = WINDOWS * 2 * job.settings.get("batch_size", 1) * longest * row_bytes
    kind = {"StreamedBags": StreamedBags, "SpreadBags": ShardedBags}[job.kind]
    return kind(Shards.open(folder), np.arange(len(slides))[:, None], most_bytes)


def fit_here(job: Job) -> dict[str, np.ndarray]:
    """Runs a job in this process, on the devices that it has."""
    the_plan = Plan(plan(folds=5, seeds=5).replicas[: job.replicas], HYPER)
    folder = Path(job.checkpoints)
    data = engine_data(num_bags=40, folds=5)
    if job.kind != "ResidentBags":
        data = dataclasses.replace(data, bags=_in_shards(data.bags, job))
    try:
        result = fit(
            [Phase(strategy(), job.epochs, Selection("val_loss"))],
            data,
            TASK,
            the_plan,
            EngineSettings(**job.settings),
            Silent(stop_after=job.stop_after),
            (lambda name: Checkpoints(folder / name, seconds=1e9)) if job.checkpoints else None,
        )
    except TrainingInterrupted:
        return {}
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(result.state[0])}
    logits = {f"{part}{r}": one[part] for r, one in enumerate(result.logits) for part in one}
    return {**arrays, **logits, "best": result.progress.best, "best_epoch": result.progress.best_epoch}


if __name__ == "__main__":
    the_job = Job(**json.loads(sys.argv[1]))
    np.savez(the_job.out, **fit_here(the_job))
