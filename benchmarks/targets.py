"""Many label columns in one program against one run after another, compilation and dispatch included.

    python -m benchmarks.targets --machine laptop

200 targets x 5 folds of gated ABMIL 32/16 on 500 invented bags (8 to 32 instances of 64 features), 10 epochs, one host device per core
for all ways, nothing cached between them. "one program": a single `fit` of all 1,000 runs. "a fold after another": a `fit` for each target
and fold, as a loop over commands or configs does. "a target after another": a `fit` for each target with its 5 folds. The last two
are timed in one process, compilation and dispatch included and the start of Python left out, on the first few targets, and their mean
is scaled to all of them. Every run is the same in all ways. Bar: 10 times faster than a fold after another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.common import MACHINE, write_result
from mil_jax import aggregators
from mil_jax.data.buckets import fit_ladder
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.runtime import use_one_device_per_core
from mil_jax.engine.types import EngineData, EngineSettings, FitResult, Phase
from mil_jax.strategies import optimizers
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification

_TARGETS = flags.DEFINE_integer("targets", 200, "Label columns.")
_BAGS = flags.DEFINE_integer("bags", 500, "Bags of the cohort.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of every run.")
_TIMED = flags.DEFINE_integer("timed", 6, "Runs, and targets, that are timed sequentially.")

FOLDS, WIDTH = 5, 64
HYPER = {"optimizer.lr": 1e-3, "optimizer.weight_decay": 1e-5}
BAR = 10.0


class _Silent:
    """Hears everything and says nothing."""

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        """See `Listener`."""

    def steps(self, count: int) -> None:
        """See `Listener`."""

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        """See `Listener`."""

    def stop_requested(self) -> bool:
        return False


def main(_: list[str]) -> None:
    use_one_device_per_core()
    jax.config.update("jax_enable_compilation_cache", False)
    data = _data(_BAGS.value, _TARGETS.value)
    every = [Replica(fold, 0, target) for target in range(_TARGETS.value) for fold in range(FOLDS)]
    _fit(data, every[:1], 1)  # what JAX does once in a process is in no figure
    together, result = _timed(data, every)
    by_fold, alone = zip(*(_timed(data, [every[number]]) for number in range(_TIMED.value)))
    by_target = [_timed(data, every[FOLDS * n : FOLDS * (n + 1)])[0] for n in range(min(_TIMED.value, _TARGETS.value))]
    for number, one in enumerate(alone):
        np.testing.assert_array_equal(one.logits[0]["test"], result.logits[number]["test"])
    seconds = {
        "one program": together,
        "a target after another, scaled": float(np.mean(by_target)) * _TARGETS.value,
        "a fold after another, scaled": float(np.mean(by_fold)) * len(every),
    }
    what = f"{_TARGETS.value} targets x {FOLDS} folds, {_BAGS.value} small bags, {_EPOCHS.value} epochs: one program against"
    table = [
        (
            f"{what} {name.removesuffix(', scaled')}",
            bar,
            f"{seconds[name] / together:.1f} ({seconds[name]:,.0f} s / {together:,.0f} s)",
        )
        for name, bar in (
            ("a fold after another, scaled", f"at least {BAR:g}"),
            ("a target after another, scaled", ""),
        )
    ]
    figures = {
        "seconds": seconds,
        "seconds_of_each_timed_fold": by_fold,
        "seconds_of_each_timed_target": by_target,
        "compilations_of_one_program": result.facts["compilations"],
        "bucket_lengths": data.lengths,
    }
    write_result("targets", MACHINE.value, figures, table)


def _timed(data: EngineData, replicas: Sequence[Replica]) -> tuple[float, FitResult]:
    start = time.perf_counter()
    result = _fit(data, replicas, _EPOCHS.value)
    return time.perf_counter() - start, result


def _fit(data: EngineData, replicas: Sequence[Replica], epochs: int) -> FitResult:
    task = Classification(("0", "1"))
    module = aggregators.create("abmil", task.num_outputs, feature_dim=32, attention_dim=16)
    strategy = Supervised(module, task, optimizers.make(optimizers.OptimizerSettings()), Schedule())
    phase = Phase(strategy, epochs, Selection("val_loss"))
    return fit([phase], data, task, Plan(tuple(replicas), HYPER), EngineSettings(), _Silent())


def _data(num_bags: int, num_targets: int) -> EngineData:
    """Each target has its own labels, of which a tenth are missing, and its own splits; 15 % of the training bags choose epochs."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(8, 33, num_bags).astype(np.int32)
    ladder = fit_ladder(sizes)
    rows = int(sizes.sum()) + ladder.lengths[-1]
    bags = ResidentBags(
        features=rng.standard_normal((rows, WIDTH), np.float32),
        coords=np.zeros((rows, 2), np.int32),
        slide_index=np.zeros(rows, np.int32),
        offsets=(np.cumsum(sizes) - sizes).astype(np.int32),
        sizes=sizes,
    )
    labels = rng.integers(2, size=(num_targets, num_bags)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.1] = -1
    tests, validations = [], []
    for _ in range(num_targets):
        test = rng.permutation(num_bags) % FOLDS == np.arange(FOLDS)[:, None]
        tests.append(test)
        validations.append(~test & (rng.random(test.shape) < 0.15))
    known = np.repeat(labels >= 0, FOLDS, axis=0)
    test, selection = np.concatenate(tests) & known, np.concatenate(validations) & known
    return EngineData(
        bags=bags,
        targets=labels,
        training=known & ~np.concatenate(tests) & ~selection,
        selection=selection,
        test=test,
        lengths=ladder.lengths,
        bucket=ladder.bucket(sizes),
        first_row=tuple(range(0, num_targets * FOLDS, FOLDS)),
    )


if __name__ == "__main__":
    app.run(main)
