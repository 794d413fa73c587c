"""Kills a training at random moments, resumes it, and compares the end with that of an undisturbed run, bit for bit.

    python scripts/kill_and_resume.py [--trials 20] [--seed 0] [--folder DIR]

The run is the embedded digits with a small model and a checkpoint at every epoch's end. Each trial is killed one to four times by
SIGKILL, at a moment drawn from the whole run or as soon as a checkpoint is being written, and then resumed until it ends. Every start
draws anew whether the features are held in memory or streamed through small windows; the undisturbed run holds them. Compared are the
final parameters of every run, predictions.csv, and the numbers in metrics.jsonl. Exit 0 only when all trials are equal.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

SETTINGS = {
    "aggregator.feature_dim": 16,
    "aggregator.attention_dim": 8,
    "data.max_buckets": 1,
    # 120 of the 600 bags: quicker trials.
    "data.filter": f"slide_id in {[f'digits-{fold}-{number:03d}' for fold in range(5) for number in range(120) if number % 10 < 2]}",
    "data.min_matched": 0.1,
    "train.epochs": 6,
    "train.checkpoint_seconds": 0,
    "data.prefetch_gib": 1e-4,
}
RESIDENCIES = ("resident", "streamed")
MOST_KILLS = 4
POLL_SECONDS = 0.002


def start(folder: Path, residency: str, *flags: str) -> subprocess.Popen[str]:
    """Starts the training command into `folder`."""
    chosen = SETTINGS | {"data.residency": residency}
    settings = [f"--config.{name}={value}" for name, value in chosen.items()]
    command = [sys.executable, "-m", "mil_jax.train", "--config", "configs/abmil.py", f"--config.run={folder}"]
    return subprocess.Popen([*command, *settings, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for the end. Raises RuntimeError with the output when the command fails."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}:\n{output}")


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> bool:
    """Kills the process as soon as `due()`; False when it ended before."""
    while process.poll() is None:
        if due():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL
        time.sleep(POLL_SECONDS)
    finish(process)
    return False


def trial(folder: Path, moments: tuple[float, float], rng: random.Random) -> str:
    """One run, killed and resumed until it ends; what happened, in words. moments: first and last second worth a kill."""
    story: list[str] = []
    wanted = rng.randint(1, MOST_KILLS)
    while len(story) < wanted:
        residency = rng.choice(RESIDENCIES)
        process, due, what = start(folder, residency, "--resume"), *moment(folder, moments, rng)
        if kill_when(process, due):
            story.append(f"{residency} {what}")
        elif story:
            break
        else:  # it ended before the first kill: again, from nothing
            shutil.rmtree(folder)
    residency = rng.choice(RESIDENCIES)
    finish(start(folder, residency, "--resume"))
    return f"killed {', '.join(story)}, ended {residency}"


def moment(folder: Path, moments: tuple[float, float], rng: random.Random) -> tuple[Callable[[], bool], str]:
    """When to kill: a function that says "now", and the moment in words."""
    if rng.random() < 0.4:
        let_through = rng.randrange(3)
        seen: set[Path] = set()

        def saving() -> bool:
            seen.update(folder.glob("checkpoints/*/*tmp*"))
            return len(seen) > let_through

        return saving, f"in save {let_through + 1}"
    after, begun = rng.uniform(*moments), time.monotonic()
    return lambda: time.monotonic() - begun > after, f"after {after:.1f} s"


def difference(folder: Path, other: Path) -> str:
    """What is not the same in two run folders; empty when all is."""
    for name in ("predictions.csv", "splits.csv", "excluded.csv"):
        if (folder / name).read_bytes() != (other / name).read_bytes():
            return name
    if metrics(folder) != metrics(other):
        return "metrics.jsonl"
    one, two = parameters(folder), parameters(other)
    if jax.tree.structure(one) != jax.tree.structure(two):
        return "the tree of parameters"
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), one, two)
    return "" if all(jax.tree.leaves(same)) else "the parameters"


def metrics(folder: Path) -> list[dict[str, object]]:
    """The rows of metrics.jsonl without the time they took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    """The final parameters of every run, as arrays."""
    with ocp.CheckpointManager((folder / "checkpoints" / "final").resolve()) as manager:
        saved = manager.restore(0, args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))["arrays"]
    return jax.tree.map(np.asarray, saved)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training at random moments, resume it, and compare its end.")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs go, to look at them; a temporary folder by default")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.folder or Path(temporary)
        undisturbed = home / "undisturbed"
        process, begun = start(undisturbed, "resident"), time.monotonic()
        while process.poll() is None and not (undisturbed / "config.json").exists():
            time.sleep(POLL_SECONDS)
        first = time.monotonic() - begun
        finish(process)
        moments = first, time.monotonic() - begun
        print(f"undisturbed: {moments[1]:.1f} s, the run folder is there after {first:.1f} s", flush=True)
        for number in range(1, arguments.trials + 1):
            folder = home / f"trial-{number}"
            try:
                story = trial(folder, moments, rng)
                found = difference(folder, undisturbed)
            except RuntimeError as error:
                story, found = str(error), "the command failed"
            failed += bool(found)
            print(f"{number:3d} {f'FAIL ({found})' if found else 'pass'}: {story}", flush=True)
    print(f"{arguments.trials - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
