"""Whether models learn: scores and seconds on real sets, by the two commands that users run.

    MIL_JAX_SHARED=FOLDER python -m benchmarks.learning --machine laptop

`--part ways` compares ways of training instead: plain, MHIM-MIL v1 and v2, and IBMIL, over the same aggregator with the same settings, on
the digits (5 seeds) and on MUSK1 and Fox (5 repeats, each with folds and first weights of its own). `--part order` compares orders of the
bags on the digits and MUSK1: slots of a bucket in blocks, one by one, and in blocks that the runs of a fold share; with as little padding
as makes many lengths.

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

from benchmarks.common import MACHINE, write_result
from mil_jax.tasks.base import METRIC_LABELS

_PART = flags.DEFINE_enum("part", "", ["", "ways", "order"], "Which comparison.")

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
_MHIM = ("--config.strategy.name=mhim", "--config.strategy.mask_high=0.02", "--config.strategy.momentum=0.999")
WAYS = {
    "plain": (),
    "MHIM-MIL v1": (*_MHIM, "--config.strategy.mask_random=0.2", "--config.strategy.mask_high_share=0.1"),
    "MHIM-MIL v2": (*_MHIM, "--config.strategy.scores=class", "--config.strategy.merge_queries=5"),
    "IBMIL": ("--config.strategy.name=ibmil",),
}
# settings, and what is run before the command
ORDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "blocks": ((), ""),
    "slot by slot": ((), "from mil_jax.engine import bag_order; bag_order.LEAST_BLOCKS = 10**9"),
    "blocks, order of a fold": (("--config.train.order=fold",), ""),
}
MANY_LENGTHS = "--config.data.max_padding=0.02"
T_OF_FIVE = 2.776  # of Student's t: 95 % of the means of five lie within so many standard errors
_LAST_LINE = re.compile(r"accuracy (\S+) \+- (\S+), AUC (\S+) \+- (\S+)")


def main(_: list[str]) -> None:
    figures: dict[str, Any] = {}
    table: list[tuple[str, str, str]] = []
    if _PART.value == "ways":
        _compare_ways(figures, table)
        write_result("learning", MACHINE.value, figures, table, part="ways")
        return
    if _PART.value == "order":
        _compare_orders(figures, table)
        write_result("learning", MACHINE.value, figures, table, part="order")
        return
    for name, config, bar in SETS:
        figures[f"{name}, {config}"] = found = _set(Path(os.environ["MIL_JAX_SHARED"]) / "data" / name, config)
        shown = f"{found['last line']}; {found['seconds']:.0f} s"
        table.append((f"{name}, {config}: mean +- standard error over repeats", bar, shown))
    for path in sorted((ROOT / "configs").glob("*.py")):
        config = f"configs/{path.name}"
        figures[f"digits, {config}"] = found = _digits(config)
        shown = f"{found['metric']} {found['mean']:.3f}, worst fold {found['worst']:.3f}; {found['seconds']:.0f} s"
        table.append((f"digits, {config}: mean of 5 folds", DIGITS_BARS.get(config, ""), shown))
    write_result("learning", MACHINE.value, figures, table)


def _compare_ways(figures: dict[str, Any], table: list[tuple[str, str, str]]) -> None:
    for way, settings in WAYS.items():
        config = "configs/abmil_mhim.py"
        figures[f"digits, {way}"] = found = _digits(config, "--config.train.num_seeds=5", *settings)
        shown = f"AUC {found['mean']:.3f}, pooled {found['low']:.3f} to {found['high']:.3f}, sd over seeds {found['seeds']:.3f}"
        table.append((f"digits, {config}, {way}: mean of 5 folds x 5 seeds", "", f"{shown}; {found['seconds']:.0f} s"))
    for name in ("musk1", "fox"):
        for way, settings in WAYS.items():
            config = "configs/musk.py"
            found = _set(Path(os.environ["MIL_JAX_SHARED"]) / "data" / name, config, *settings)
            figures[f"{name}, {way}"] = found
            low, high = (found["AUC"] + side * T_OF_FIVE * found["AUC error"] for side in (-1, 1))
            shown = f"accuracy {found['accuracy']:.3f}, AUC {found['AUC']:.3f}, {low:.3f} to {high:.3f}; {found['seconds']:.0f} s"
            table.append((f"{name}, {config}, {way}: mean and 95 % interval of 5 repeats of 10 folds", "", shown))


def _compare_orders(figures: dict[str, Any], table: list[tuple[str, str, str]]) -> None:
    musk = Path(os.environ["MIL_JAX_SHARED"]) / "data" / "musk1"
    for config in ("configs/abmil.py", "configs/dsmil.py"):
        for order, (settings, before) in ORDERS.items():
            found = _digits(config, "--config.train.num_seeds=5", MANY_LENGTHS, *settings, before=before)
            figures[f"digits, {config}, {order}"] = found
            shown = f"AUC {found['mean']:.4f}, pooled {found['low']:.3f} to {found['high']:.3f}, sd over seeds {found['seeds']:.4f}"
            table.append((f"digits, {config}, {order}: mean of 5 folds x 5 seeds", "", shown))
    for config in ("configs/musk.py", "configs/recipes/dsmil_musk.py"):
        for order, (settings, before) in ORDERS.items():
            figures[f"musk1, {config}, {order}"] = found = _set(musk, config, MANY_LENGTHS, *settings, before=before)
            shown = f"accuracy {found['accuracy']:.3f}, AUC {found['AUC']:.3f} +- {found['AUC error']:.3f}"
            table.append((f"musk1, {config}, {order}: mean of 5 repeats of 10 folds", "", shown))


def _set(data: Path, config: str, *settings: str, before: str = "") -> dict[str, Any]:
    start = time.perf_counter()
    arguments = ["--data", str(data.resolve()), "--config", config, *settings]
    text = _command("scripts.mil_benchmarks", *arguments, before=before)
    seconds = time.perf_counter() - start
    last = text.splitlines()[-1]
    matched = _LAST_LINE.fullmatch(last)
    if matched is None:
        raise RuntimeError(f"unexpected last line: {last}")
    keys = ("accuracy", "accuracy error", "AUC", "AUC error")
    return {"last line": last, "seconds": seconds} | dict(zip(keys, map(float, matched.groups()), strict=True))


def _digits(config: str, *settings: str, before: str = "") -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        _command("mil_jax.train", "--config", config, f"--config.run={folder}/run", *settings, before=before)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text(encoding="utf-8"))
    name = "auc" if "auc" in summary["metrics"] else next(iter(summary["metrics"]))
    metric = summary["metrics"][name]
    kept = {key: metric[key] for key in ("mean", "worst", "low", "high")} | {"seeds": metric["sd_seeds"]}
    seconds = summary["facts"]["seconds of training, compilation included"]
    return {"metric": METRIC_LABELS.get(name, name), "seconds": seconds, **kept}


def _command(module: str, *arguments: str, before: str) -> str:
    """What the module prints as a command, after the Python code `before`."""
    code = f"{before}\nimport runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    app.run(main)
