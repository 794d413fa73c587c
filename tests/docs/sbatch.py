"""Stands in for Slurm's sbatch: runs the job at once, an array's tasks sequentially, and prints its number. Any other option is read
and left alone, as are jobs that it waits for: they have ended. A task that fails ends the command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--wrap", required=True)
parser.add_argument("--array", default="")
parser.add_argument("--parsable", action="store_true")
parser.add_argument("--requeue", action="store_true")
for option in ("cpus-per-task", "gpus", "dependency", "job-name", "signal"):
    parser.add_argument(f"--{option}")
given = parser.parse_args()

first, _, last = given.array.partition("-")
for task in range(int(first), int(last) + 1) if given.array else [None]:
    environment = dict(os.environ) if task is None else {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
    done = subprocess.run(["bash", "-c", given.wrap], env=environment, stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)
print(1)
