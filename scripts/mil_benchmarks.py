"""Cross-validates a config on classic multiple-instance sets, all folds of all repeats as one program.

    python scripts/mil_benchmarks.py --data FOLDER --config configs/musk.py [--config.train.epochs=40 ...]

FOLDER holds sets as `<name>.npz`: `features` [instances, ...], `bag_index` [instances], `labels` [bags], and optionally `folds`
[repeats, bags], the fold in which each bag is tested (without it: 5 times stratified 10-fold, seed 0). A file with `x_train`,
`y_train`, `x_test`, `y_test` (images and their digits) gives MNIST-bags, a bag being positive when it holds a 9; every repeat draws
its own bags. Vectors are standardised by each run's training bags. The last line of a set: `accuracy X +- Y, AUC X +- Y`, the mean
and the standard error over the repeats; those of a repeat are taken over the pooled predictions of its test folds.
"""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from mil_jax.cli.console import console, frame_table, run_command, say
from mil_jax.config import ConfigDict, help_text, parse
from mil_jax.data.shards.writer import write_shards
from mil_jax.data.splits.folds import k_folds, label_counts
from mil_jax.engine.runtime import use_one_device_per_core
from mil_jax.engine.types import FitResult
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.prepare import prepare
from mil_jax.interop.slide_bag import Provenance, SlideBag

FOLDS, REPEATS = 10, 5  # where a set comes without folds
DIGIT, DIGIT_REPEATS = 9, 2
VECTOR_KEYS = ("features", "bag_index", "labels")
DIGIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
SECONDS_BETWEEN_LINES = 5.0

# What the papers print, written down from memory: check before citing. Accuracy with the error as printed, unless said otherwise.
PUBLISHED = {
    "musk1": (
        ("mi-SVM", "0.874"),
        ("MI-Net with deep supervision", "0.894 +- 0.042"),
        ("ABMIL, attention", "0.892 +- 0.040"),
        ("ABMIL, gated", "0.900 +- 0.050"),
        ("NLMIL", "0.921 +- 0.017"),
        ("DSMIL (its code keeps the best epoch on the test fold)", "0.932 +- 0.023"),
    ),
    "fox": (
        ("mi-SVM", "0.582"),
        ("MI-Net with deep supervision", "0.630 +- 0.037"),
        ("ABMIL, attention", "0.615 +- 0.043"),
        ("ABMIL, gated", "0.603 +- 0.029"),
        ("NLMIL", "0.703 +- 0.035"),
        ("DSMIL (its code keeps the best epoch on the test fold)", "0.729 +- 0.018"),
    ),
    "mnist": (("ABMIL, attention; 200 training bags of mean size 10", "AUC 0.97, read off a figure to about 0.02"),),
}


@dataclass(frozen=True)
class BagSet:
    """Bags [M] with labels, and for each run which bags it trains on and tests.

    bags: iterated once, when shards are written. training, test: bool [runs, M]. repeat: int [runs].
    """

    name: str
    num_bags: int
    bags: Iterator[np.ndarray]
    labels: np.ndarray
    training: np.ndarray
    test: np.ndarray
    repeat: np.ndarray
    about: str


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    flags.DEFINE_string("data", "", "folder of <name>.npz", flag_values=values)
    own: dict[str, Any] = {"flag_values": values, "lower_bound": 1}
    flags.DEFINE_integer("repeats", DIGIT_REPEATS, "MNIST-bags: how often bags are drawn and trained on", **own)
    flags.DEFINE_integer("training_bags", 200, "MNIST-bags: number of training bags", **own)
    flags.DEFINE_integer("test_bags", 1000, "MNIST-bags: number of test bags", **own)
    flags.DEFINE_float("mean_size", 10.0, "MNIST-bags: mean number of images in a bag", **own)
    flags.DEFINE_float("size_deviation", 2.0, "MNIST-bags: its standard deviation", flag_values=values, lower_bound=0)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if help_asked_for := help_text(arguments, define_flags, str(__doc__)):
        say(help_asked_for)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        # The shards that will be written are named now: a config without data would become its demo.
        shards = Path(temporary) / "shards"
        config, values, _ = parse([*arguments, f"--config.data.shards={shards}"], define_flags)
        if not values.data:
            raise ConfigError("--data is missing: name a folder that holds <name>.npz")
        sets = [_read(path, values) for path in _files(Path(values.data))]  # all are checked before anything is trained
        use_one_device_per_core()
        for bags in sets:
            say(f"{bags.name}: {bags.about}")
            _cross_validate(bags, config, shards)
    return 0


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"--data={folder}: there is no such folder; name a folder that holds <name>.npz")
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError(f"--data={folder}: the folder holds no .npz file; it should hold <name>.npz")
    return files


def _read(path: Path, values: flags.FlagValues) -> BagSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an .npz file of arrays ({error}); get the file again") from error
    if "x_train" in arrays:
        _require(path, arrays, DIGIT_KEYS)
        return _digit_bags(path, arrays, values)
    _require(path, arrays, VECTOR_KEYS)
    return _vector_bags(path, arrays)


def _require(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(
            f"{path}: the arrays {', '.join(missing)} are missing, it holds {', '.join(arrays) or 'none'}; "
            "see --help for what a set holds"
        )


def _vector_bags(path: Path, arrays: dict[str, np.ndarray]) -> BagSet:
    features, bag_index, labels = (arrays[key] for key in VECTOR_KEYS)
    if (
        features.ndim < 2
        or bag_index.shape != features.shape[:1]
        or labels.ndim != 1
        or bag_index.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{path}: features {features.shape}, bag_index {bag_index.shape} and labels {labels.shape} do not fit together; "
            "they should be [instances, ...], [instances] and [bags]"
        )
    num_bags = len(labels)
    sizes = np.bincount(np.maximum(bag_index, 0), minlength=num_bags)
    if len(sizes) > num_bags or bag_index.min() < 0 or not sizes.all():
        raise DataError(f"{path}: bag_index must number the {num_bags} bags from 0 and leave none empty")
    order = np.argsort(bag_index, kind="stable")
    if "folds" in arrays:
        folds = np.atleast_2d(arrays["folds"])
        if folds.shape[1] != num_bags or folds.dtype.kind not in "iu":
            raise DataError(f"{path}: folds {folds.shape} must be whole numbers [repeats, bags], for {num_bags} bags")
        source = "the set's own folds"
    else:
        folds, source = _draw_folds(labels), f"stratified {FOLDS}-fold, seed 0"
    runs = [(repeat, row == fold) for repeat, row in enumerate(folds) for fold in np.unique(row)]
    test = np.stack([held_out for _, held_out in runs])
    repeat = np.array([number for number, _ in runs])
    return BagSet(
        name=path.stem,
        num_bags=num_bags,
        bags=iter(np.split(features[order], np.cumsum(sizes)[:-1])),
        labels=labels,
        training=~test,
        test=test,
        repeat=repeat,
        about=f"{num_bags} bags, {len(features)} instances; {len(test)} folds in {len(folds)} repeats ({source})",
    )


def _draw_folds(labels: np.ndarray) -> np.ndarray:
    classes = np.unique(labels, return_inverse=True)[1]
    bags = np.arange(len(labels))
    draws = [
        k_folds(bags, label_counts(classes), min(FOLDS, len(labels)), np.random.default_rng([0, repeat]))
        for repeat in range(REPEATS)
    ]
    return np.stack(draws)


def _digit_bags(path: Path, arrays: dict[str, np.ndarray], values: flags.FlagValues) -> BagSet:
    per_repeat = values.training_bags + values.test_bags
    num_bags = values.repeats * per_repeat
    members, labels = [], np.zeros(num_bags, np.int64)
    for repeat in range(values.repeats):
        rng = np.random.default_rng(repeat)
        for part, count in (("train", values.training_bags), ("test", values.test_bags)):
            images, digits = arrays[f"x_{part}"], arrays[f"y_{part}"]
            if images.ndim != 3 or digits.shape != images.shape[:1]:
                raise DataError(f"{path}: x_{part} {images.shape} and y_{part} {digits.shape} are no images and digits")
            for _ in range(count):
                size = max(1, round(rng.normal(values.mean_size, values.size_deviation)))
                chosen = rng.integers(len(images), size=size)
                labels[len(members)] = (digits[chosen] == DIGIT).any()
                members.append((part, chosen))
    place = np.arange(num_bags) % per_repeat
    mine = np.arange(num_bags) // per_repeat == np.arange(values.repeats)[:, None]
    return BagSet(
        name="mnist",
        num_bags=num_bags,
        bags=((arrays[f"x_{part}"][chosen, :, :, None] / 255).astype(np.float16) for part, chosen in members),
        labels=labels,
        training=mine & (place < values.training_bags),
        test=mine & (place >= values.training_bags),
        repeat=np.arange(values.repeats),
        about=f"MNIST-bags, {values.training_bags} training and {values.test_bags} test bags of "
        f"{values.mean_size:g} +- {values.size_deviation:g} of {len(arrays['x_train'])} images, drawn {values.repeats} times",
    )


def _cross_validate(bags: BagSet, config: ConfigDict, folder: Path) -> None:
    """Trains and tests all runs of a set and prints its results."""
    started = time.monotonic()
    experiment = prepare(_write(bags, config, folder))
    train, monitor = experiment.config.train, experiment.selection.monitor
    if train.protocol != "clean":
        raise ConfigError("train.protocol=reference may choose epochs on the test part; benchmarks are run as clean")
    chosen = (
        f"the last of {train.epochs} epochs, fixed beforehand" if monitor == "last" else f"epoch chosen by {monitor}"
    )
    say(f"{len(experiment.plan.replicas)} runs as one program; {chosen}; normalize={experiment.config.data.normalize}")
    result = fitter_of(experiment).fit(_Progress())
    rows = _rows(experiment, result, bags.repeat)
    console.print(frame_table(f"{bags.name}: predictions pooled over the folds of each repeat", rows.round(4)))
    if bags.name in PUBLISHED:
        published = pd.DataFrame(PUBLISHED[bags.name], columns=["method", "accuracy, as printed"])
        console.print(frame_table("published (from memory of the papers: check before citing)", published))
    say(f"{time.monotonic() - started:.1f} s in all, compilation included")
    say(", ".join(f"{name} {_mean_and_error(rows[name])}" for name in ("accuracy", "AUC")))


def _write(bags: BagSet, config: ConfigDict, folder: Path) -> ConfigDict:
    """Writes shards, label table and split table; returns the config that reads them."""
    ids = np.array([f"{bags.name}-{number:05d}" for number in range(bags.num_bags)])
    slides = (SlideBag(name, bag, provenance=Provenance(encoder="none")) for name, bag in zip(ids, bags.bags))
    write_shards(slides, folder, overwrite=True)
    labels, splits = folder.with_name("labels.csv"), folder.with_name("splits.csv")
    pd.DataFrame({"slide_id": ids, "patient_id": ids, "label": bags.labels}).to_csv(labels, index=False)
    parts = [
        pd.DataFrame({"fold": str(row), "bag_id": ids[part], "patient_id": ids[part], "part": name})
        for row in range(len(bags.test))
        for name, part in (("train", bags.training[row]), ("test", bags.test[row]))
    ]
    pd.concat(parts).to_csv(splits, index=False)
    config = ConfigDict(config.to_dict())
    config.data.update({"shards": str(folder), "labels": str(labels), "target": "label", "patient": "patient_id"})
    config.splits.update({"kind": "file", "file": str(splits)})
    if config.train.monitor == "last":
        config.splits.val_fraction = 0.0  # nothing is chosen, so no bag is spent on it
    if bags.name != "mnist" and config.data.normalize == "none":
        config.data.normalize = "zscore"
    return config


def _rows(experiment: Experiment, result: FitResult, repeat: np.ndarray) -> pd.DataFrame:
    """Accuracy and AUC of each repeat and seed, over the pooled predictions of its folds, and the mean over its folds."""
    replicas = experiment.plan.replicas
    rows = []
    for seed in dict.fromkeys(replica.seed for replica in replicas):
        for number in np.unique(repeat):
            chosen = [r for r, one in enumerate(replicas) if one.seed == seed and repeat[one.fold] == number]
            probabilities = [experiment.task.probabilities(result.logits[r]["test"]) for r in chosen]
            targets = [experiment.targets[0].values[result.bags[r]["test"]] for r in chosen]
            pooled = experiment.task.metrics(np.concatenate(probabilities), np.concatenate(targets))
            folds = [experiment.task.metrics(p, t) for p, t in zip(probabilities, targets)]
            rows.append(
                {
                    "repeat": int(number),
                    "seed": seed,
                    "accuracy": pooled["accuracy"],
                    "AUC": pooled["auc"],
                    "worst fold's accuracy": min(fold["accuracy"] for fold in folds),
                    "mean of the folds' AUC": float(np.mean([fold["auc"] for fold in folds])),
                }
            )
    return pd.DataFrame(rows)


def _mean_and_error(values: pd.Series) -> str:
    """Mean and standard error; the latter is nan for a single value."""
    return f"{values.mean():.3f} +- {values.std(ddof=1) / len(values) ** 0.5:.3f}"


class _Progress:
    """Says where training is, a line every few seconds."""

    bags = 0

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.begun = self.said = time.monotonic()
        self.name, self.epochs = name, epochs
        say(f"{name}: compiling ...")

    def steps(self, count: int) -> None:
        self.bags += count

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        now, epoch = time.monotonic(), rows[0]["epoch"] + 1
        if "train_loss" not in rows[0]:  # a stage that trains nothing
            return
        if epoch in (1, self.epochs) or now - self.said > SECONDS_BETWEEN_LINES:
            self.said = now
            elapsed = now - self.begun
            loss = np.mean([row["train_loss"] for row in rows])
            say(
                f"{self.name}: epoch {epoch} of {self.epochs}: {len(rows)} runs, mean training loss {loss:.3f}, "
                f"{self.bags / elapsed:,.0f} bags/s, {elapsed:.0f} s, at most {elapsed / epoch * (self.epochs - epoch):.0f} s left"
            )

    def stop_requested(self) -> bool:
        return False


if __name__ == "__main__":
    run_command(main)
