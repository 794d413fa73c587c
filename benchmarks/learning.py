"""Whether models learn: scores and seconds on real sets, by the two commands that users run.

    MIL_JAX_SHARED=FOLDER python -m benchmarks.learning --machine laptop

FOLDER/data holds `musk1/musk1.npz`, `fox/fox.npz` and `mnist/mnist.npz` in the form that `scripts/mil_benchmarks.py` reads; the
digits come with the library and are trained with every config that ships. Seconds of a set are those of the whole command, with the
start of Python and compilation; those of the digits are of training, with compilation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.common import DEFAULT_MACHINE, write_result

_MACHINE = flags.DEFINE_string("machine", DEFAULT_MACHINE, "Name of the machine, for the result's file.")

ROOT = Path(__file__).parents[1]
SETS = (
    ("musk1", "configs/musk.py", "accuracy 0.84, AUC 0.91, 60 s"),
    ("fox", "configs/musk.py", "accuracy 0.55"),
    ("musk1", "configs/recipes/dsmil_musk.py", ""),
    ("fox", "configs/recipes/dsmil_musk.py", ""),
    ("musk1", "configs/recipes/clam_sb_musk.py", ""),
    ("fox", "configs/recipes/clam_sb_musk.py", ""),
    ("mnist", "configs/abmil_ilse.py", "AUC 0.95"),
)
DIGITS_BARS = {
    "configs/abmil.py": "AUC 0.97, 0.15 above mean pooling, 30 s",
    "configs/max_pooling.py": "AUC 0.97",
    "configs/mean_pooling.py": "AUC under 0.85",
}
_LAST_LINE = re.compile(r"accuracy (\S+) \+- (\S+), AUC (\S+) \+- (\S+)")


def main(_: list[str]) -> None:
    figures: dict[str, Any] = {}
    table = []
    for name, config, bar in SETS:
        figures[f"{name}, {config}"] = found = _set(Path(os.environ["MIL_JAX_SHARED"]) / "data" / name, config)
        shown = f"{found['last line']}; {found['seconds']:.0f} s"
        table.append((f"{name}, {config}: mean +- standard error over repeats", bar, shown))
    for path in sorted((ROOT / "configs").glob("*.py")):
        config = f"configs/{path.name}"
        figures[f"digits, {config}"] = found = _digits(config)
        shown = f"AUC {found['AUC']:.3f}, worst fold {found['worst AUC']:.3f}; {found['seconds']:.0f} s"
        table.append((f"digits, {config}: mean of 5 folds", DIGITS_BARS.get(config, ""), shown))
    write_result("learning", _MACHINE.value, figures, table)


def _set(data: Path, config: str) -> dict[str, Any]:
    start = time.perf_counter()
    text = _command("scripts/mil_benchmarks.py", "--data", str(data.resolve()), "--config", config)
    seconds = time.perf_counter() - start
    last = text.splitlines()[-1]
    matched = _LAST_LINE.fullmatch(last)
    if matched is None:
        raise RuntimeError(f"unexpected last line: {last}")
    keys = ("accuracy", "accuracy error", "AUC", "AUC error")
    return {"last line": last, "seconds": seconds} | dict(zip(keys, map(float, matched.groups()), strict=True))


def _digits(config: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        _command("-m", "mil_jax.train", "--config", config, f"--config.run={folder}/run")
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text(encoding="utf-8"))
    auc = summary["metrics"]["auc"]
    seconds = summary["facts"]["seconds of training, compilation included"]
    return {"AUC": auc["mean"], "worst AUC": auc["worst"], "seconds": seconds}


def _command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    app.run(main)
