"""What `train.precision=bfloat16` costs in AUC: the embedded digits, 5 folds x 5 seeds, in both precisions.

    python -m benchmarks.precision --machine laptop

The runs of both precisions share their folds, seeds and orders. Given are the mean test AUC of both and, over the seeds, the mean and
the standard error of the difference. Bar: less than 0.005 on average.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags
from sklearn.metrics import roc_auc_score

from benchmarks.common import MACHINE, write_result

_CONFIGS = flags.DEFINE_list("configs", ["abmil", "clam_sb", "dsmil", "max_pooling", "transmil"], "Files of configs/.")

ROOT = Path(__file__).parents[1]
SEEDS = 5
BAR = 0.005
POSITIVE = "nine"


def main(_: list[str]) -> None:
    figures, table = {}, []
    for name in _CONFIGS.value:
        aucs = {precision: _aucs(name, precision) for precision in ("float32", "bfloat16")}
        difference = aucs["bfloat16"] - aucs["float32"]
        error = difference.std(ddof=1) / np.sqrt(SEEDS)
        figures[name] = {precision: values.tolist() for precision, values in aucs.items()}
        shown = f"{aucs['float32'].mean():.4f} / {aucs['bfloat16'].mean():.4f}: {difference.mean():+.4f} +- {error:.4f}"
        table.append((f"digits, {name}: AUC in float32 / bfloat16", f"difference under {BAR}", shown))
        print(*table[-1], flush=True)
    write_result("precision", MACHINE.value, figures, table)


def _aucs(name: str, precision: str) -> np.ndarray:
    """Of each seed, the mean test AUC over the folds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"run": f"{folder}/run", "train.precision": precision, "train.num_seeds": SEEDS}
        flags_ = [f"--config.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "mil_jax.train", "--config", f"configs/{name}.py", *flags_]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        rows = pd.read_csv(Path(folder) / "run" / "predictions.csv")
    tested = rows[rows["part"] == "test"].groupby(["seed", "fold"])
    aucs = {key: roc_auc_score(one["target"] == POSITIVE, one[f"prob_{POSITIVE}"]) for key, one in tested}
    return np.array([[auc for (of, _), auc in aucs.items() if of == seed] for seed in range(SEEDS)]).mean(axis=1)


if __name__ == "__main__":
    app.run(main)
