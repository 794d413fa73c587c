"""The cohort that comes with the library: real handwritten digits as bags, "does the bag hold a 9?", and questions for other tasks.

The 1,797 images of scikit-learn's digits (8 x 8 pixels, as vectors of 64) are first dealt to the folds, so that no image is in two
of them: sharing images between folds is a leak that halves the error. Each bag draws about 25 images of its fold; every second bag
has exactly one 9, the others none. A validation part, carved from the training bags, does share images with them, so its scores are
better than the test's. The other labels are made of which digits a bag holds (`_other_labels`). Shards, label table and split table
are written to a folder and read back like any cohort's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.errors import ShardError
from mil_jax.files import atomic_write
from mil_jax.interop.slide_bag import Provenance, SlideBag

DIGIT = 9
FOLDS = 5
BAGS_PER_FOLD = 120
NUM_NEIGHBORS = 8  # of the images on their grid, for methods on graphs
MEAN_SIZE, SIZE_DEVIATION, MIN_SIZE = 25, 5, 8
TARGETS = {  # the label columns of each task
    "classification": "label",
    "multilabel": "nine,many_ones,many_eights",
    "multiclass": "label,eights",
    "regression": "mean_digit",
    "survival": "months",
    "ordinal": "eights",
}
CLASSES = {"classification": "no nine,nine", "pathgene": "no nine,nine", "ordinal": "few,some,many"}
EVENT = "died"  # of the task survival
_VERSION = 3  # part of the folder's name: a changed recipe gets a new folder


@dataclass(frozen=True)
class DigitsCohort:
    """Where the cohort lies: a shard folder, a label table (slide_id, patient_id, label, ...) and a split table."""

    shards: Path
    labels: Path
    splits: Path


def digits_cohort(cache: Path, regions: int = 0) -> DigitsCohort:
    """The cohort below `cache`, written there the first time. regions: images a side of the regions that are instances; 0: images are."""
    folder = cache / f"digits-v{_VERSION}"
    shards = folder / (f"shards-regions-{regions}" if regions else "shards")
    cohort = DigitsCohort(shards, folder / "labels.csv", folder / "splits.csv")
    if not all(path.exists() for path in (cohort.shards, cohort.labels, cohort.splits)) or not _readable(cohort.shards):
        bags, table, splits = draw_bags(np.random.default_rng(0))
        neighbors = 0 if regions else NUM_NEIGHBORS
        write_shards(bags, cohort.shards, overwrite=True, num_neighbors=neighbors, regions=regions)
        for path, rows in ((cohort.labels, table), (cohort.splits, splits)):
            with atomic_write(path) as temporary:
                rows.to_csv(temporary, index=False)
    return cohort


def draw_bags(rng: np.random.Generator) -> tuple[list[SlideBag], pd.DataFrame, pd.DataFrame]:
    """(bags, label table, split table with training and test parts)."""
    images, digits = _images()
    deal = rng.permutation(len(images)) % FOLDS
    bags, rows, fold_of = [], [], []
    luck = np.random.default_rng(1)  # of its own: bags and folds do not depend on further labels
    for fold in range(FOLDS):
        others = np.flatnonzero((deal == fold) & (digits != DIGIT))
        nines = np.flatnonzero((deal == fold) & (digits == DIGIT))
        for number in range(BAGS_PER_FOLD):
            positive = number % 2 == 1
            size = max(MIN_SIZE, round(rng.normal(MEAN_SIZE, SIZE_DEVIATION)))
            members = rng.choice(others, size)
            if positive:
                members[rng.integers(size)] = rng.choice(nines)
            name = f"digits-{fold}-{number:03d}"
            bags.append(
                SlideBag(
                    name,
                    images[members],
                    _grid(size),
                    Provenance(8.0, coordinate_unit="level0_pixels", encoder="pixels"),
                )
            )
            rows.append(
                {"slide_id": name, "patient_id": name, "label": "nine" if positive else "no nine"}
                | _other_labels(digits[members], luck)
            )
            fold_of.append(fold)
    table = pd.DataFrame(rows)
    dealt = table[["slide_id", "patient_id"]].rename(columns={"slide_id": "bag_id"})
    parts = [np.where(np.array(fold_of) == split, "test", "train") for split in range(FOLDS)]
    splits = pd.concat([dealt.assign(fold=str(split), part=part) for split, part in enumerate(parts)])
    return bags, table, splits


def _other_labels(digits: np.ndarray, luck: np.random.Generator) -> dict[str, object]:
    """Labels of a bag of these digits: three that may each be present, one in ten of them unknown; a number; grades; and a time with
    whether it ended in death, whose hazard is three times as high with a nine and grows with the share of eights.
    """
    many = {"nine": DIGIT in digits, "many_ones": np.sum(digits == 1) > 2, "many_eights": np.sum(digits == 8) > 2}
    known = luck.random(len(many)) >= 0.1
    eights = int(np.sum(digits == 8))
    hazard = 3.0 ** float(DIGIT in digits) * np.exp(10.0 * (eights / len(digits) - 0.1)) / 40.0
    death, end = luck.exponential(1 / hazard), luck.uniform(5.0, 60.0)
    return {
        **{name: int(value) if known else "" for (name, value), known in zip(many.items(), known)},
        "mean_digit": round(float(np.mean(digits)), 3),
        "eights": "few" if eights < 2 else "some" if eights < 4 else "many",
        "months": round(float(min(death, end)), 1),
        EVENT: int(death <= end),
    }


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    """(images [1797, 64] float16 in [0, 1], exact in sixteenths; digits [1797])."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.data / 16.0).astype(np.float16), data.target


def _grid(size: int) -> np.ndarray:
    """The images of a bag lie side by side in rows of five, 8 pixels apart."""
    place = np.arange(size)
    return np.stack([place % 5, place // 5], axis=1).astype(np.int32) * 8


def _readable(folder: Path) -> bool:
    try:
        Shards.open(folder)
    except ShardError:
        return False
    return True
