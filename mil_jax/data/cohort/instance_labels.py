"""Labels of single instances: one file for each slide that has any, `<slide>.npy` or `<slide>.csv` (a column `label`), in the order of the
slide's features: 0, 1, or more than 0 for what is of the positive class.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mil_jax.data.cohort.ids import base_name
from mil_jax.data.tables import listed, read_columns
from mil_jax.errors import DataError
from mil_jax.interop.array_files import UNNAMED, open_arrays

SUFFIXES = (".npy", ".csv")


def read_instance_labels(
    folder: str | os.PathLike[str], slide_ids: Sequence[str], num_instances: np.ndarray
) -> dict[int, np.ndarray]:
    """{number of the slide: bool [n]} of the slides that have a file; num_instances [S].

    Raises DataError where no slide has one, a file cannot be read, or it has another number of labels than the slide has instances.
    """
    home = Path(folder).expanduser()
    files = {base_name(path.stem): path for path in sorted(home.rglob("*")) if path.suffix.lower() in SUFFIXES}
    found = {}
    for number, slide in enumerate(slide_ids):
        path = files.get(base_name(slide))
        if path is None or not num_instances[number]:
            continue
        labels = _read(path)
        if len(labels) != num_instances[number]:
            raise DataError(
                f"{path}: {len(labels)} labels, and slide {slide} has {num_instances[number]} instances; labels are those of the "
                "features' rows, in their order"
            )
        found[number] = labels > 0
    if not found:
        raise DataError(
            f"{home}: no file there is named like a slide, such as {listed([f'{base_name(slide_ids[0])}.npy'])}; name a folder with one "
            ".npy or .csv file for each slide whose instances are labelled"
        )
    return found


def _read(path: Path) -> np.ndarray:
    """Numbers [n]."""
    if path.suffix.lower() == ".csv":
        labels = pd.to_numeric(read_columns(path, ["label"])["label"], errors="coerce").to_numpy(np.float64)
    else:
        labels = open_arrays(path).read(UNNAMED)
        if labels.ndim == 0 or labels.size != labels.shape[0]:
            raise DataError(f"{path}: an array {list(labels.shape)}; labels are numbers [instances]")
        if labels.dtype.kind not in "buif":
            raise DataError(f"{path}: an array {list(labels.shape)} of {labels.dtype}; labels are numbers [instances]")
        labels = labels.reshape(-1).astype(np.float64)
    if not np.isfinite(labels).all():
        raise DataError(f"{path}: label {int(np.flatnonzero(~np.isfinite(labels))[0]) + 1} is no number; write 0 or 1")
    return labels
