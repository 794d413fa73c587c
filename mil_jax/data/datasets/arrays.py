"""A cohort given as arrays: written once to shards and a label table below the cache, and read back like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mil_jax.data.shards.index import INDEX_FILE
from mil_jax.data.shards.writer import write_shards
from mil_jax.errors import DataError
from mil_jax.files import atomic_write
from mil_jax.interop.slide_bag import Provenance, SlideBag

PATIENT, LABEL = "patient_id", "label"  # columns of the table


class ArrayCohort(NamedTuple):
    """A shard folder, and a label table (slide_id, patient_id, and a column for each label)."""

    shards: Path
    labels: Path


def array_cohort(
    bags: Sequence[np.ndarray],
    labels: Sequence[object] | np.ndarray | pd.DataFrame,
    patients: Sequence[object] | None,
    coords: Sequence[np.ndarray] | None,
    cache: Path,
    num_neighbors: int = 0,
    regions: int = 0,
) -> ArrayCohort:
    """bags: arrays [n, *F] in order. labels: one for each bag, or a table with a row for each. patients: whose the bags are; None: each
    bag is of a patient of its own. coords: [n, 2] each. num_neighbors, regions: as `write_shards`.

    Raises DataError where the lengths differ, and as `write_shards`.
    """
    table = labels.reset_index(drop=True) if isinstance(labels, pd.DataFrame) else pd.DataFrame({LABEL: list(labels)})
    lengths = {"bags": len(bags), "labels": len(table)}
    lengths |= {name: len(one) for name, one in (("patients", patients), ("coords", coords)) if one is not None}
    if len(set(lengths.values())) > 1:
        raise DataError(f"there must be one of each for every bag: {', '.join(f'{n} {k}' for k, n in lengths.items())}")
    names = [f"bag{number:06d}" for number in range(len(bags))]
    table.insert(0, "slide_id", names)
    if PATIENT not in table or patients is not None:
        table[PATIENT] = names if patients is None else [str(patient) for patient in patients]
    text = table.to_csv(index=False)
    unit = "none" if coords is None else "level0_pixels"
    slides = [
        SlideBag(
            name,
            np.asarray(bag),
            None if coords is None else np.asarray(coords[number], np.int32),
            Provenance(coordinate_unit=unit),
        )
        for number, (name, bag) in enumerate(zip(names, bags, strict=True))
    ]
    digest = hashlib.sha256(f"{num_neighbors} {regions} {unit}".encode())
    for slide in slides:
        digest.update(f"{slide.features.dtype} {slide.features.shape}".encode())
        digest.update(np.ascontiguousarray(slide.features).data)
        digest.update(b"" if slide.coords is None else np.ascontiguousarray(slide.coords).data)
    folder = cache / f"arrays-{digest.hexdigest()[:16]}"
    if not (folder / INDEX_FILE).exists():
        write_shards(slides, folder, num_neighbors=num_neighbors, regions=regions)
    return ArrayCohort(folder, label_table(text, cache))


def label_table(text: str, cache: Path) -> Path:
    """A file below the cache that holds the table `text` (csv); the same text is the same file."""
    path = cache / f"labels-{hashlib.sha256(text.encode()).hexdigest()[:16]}.csv"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path
