"""Invented but realistic cohorts for tests of commands: TCGA-like slides with a planted signal, in the layouts of other pipelines.

A patient has one to three slides; a share of a slide's tiles lies `signal` away from the rest, in a direction of the patient's class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Invented:
    """features: per slide id [n, D] float32. table: slide_id, case_id, subtype, and two 0/1 columns; a row per slide."""

    features: dict[str, np.ndarray]
    table: pd.DataFrame

    def coords(self, slide: str, step: float = 512) -> np.ndarray:
        """Tiles side by side, ten in a row, [n, 2]."""
        place = np.arange(len(self.features[slide]))
        return np.stack([place % 10, place // 10], axis=1) * step


def invent(
    patients: int = 24,
    *,
    width: int = 16,
    classes: tuple[str, ...] = ("LUAD", "LUSC"),
    sizes: tuple[int, int] = (4, 20),
    slides: tuple[int, int] = (1, 3),
    signal: float = 3.0,
    seed: int = 0,
) -> Invented:
    """`patients` patients of all classes in turn; `sizes` and `slides` are the least and the largest number, drawn evenly."""
    rng = np.random.default_rng(seed)
    features: dict[str, np.ndarray] = {}
    rows = []
    for patient in range(patients):
        label = patient % len(classes)
        case = f"TCGA-{('05', '44', '4B', '50')[patient // 2 % 4]}-{4200 + patient}"
        for slide in range(rng.integers(slides[0], slides[1] + 1)):
            name = f"{case}-01Z-00-DX{slide + 1}.{rng.bytes(4).hex().upper()}"
            tiles = rng.standard_normal((rng.integers(sizes[0], sizes[1] + 1), width)).astype(np.float32)
            tiles[: max(1, len(tiles) // 4), label] += signal
            features[name] = tiles[rng.permutation(len(tiles))]
            rows.append({"slide_id": name, "case_id": case, "subtype": classes[label], "age": 40 + patient})
    table = pd.DataFrame(rows)
    table["mutated"] = (table["subtype"] == classes[-1]).astype(int)
    table["smoker"] = table["age"] % 2
    return Invented(features, table)


def write_clam(cohort: Invented, folder: Path) -> Path:
    """CLAM's results folder: h5_files and patches. Returns the folder to name."""
    for slide, features in cohort.features.items():
        coords = cohort.coords(slide).astype(np.int32)
        _h5(folder / "h5_files" / f"{slide}.h5", {"features": features, "coords": coords})
        attributes = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0)}
        _h5(folder / "patches" / f"{slide}.h5", {"coords": coords}, coords=attributes)
    return folder


def write_trident(cohort: Invented, folder: Path) -> Path:
    """TRIDENT's job folder, float16 features."""
    home = folder / "20x_256px_0px_overlap" / "features_uni_v1"
    said = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    for slide, features in cohort.features.items():
        arrays = {"features": features.astype(np.float16), "coords": cohort.coords(slide).astype(np.int64)}
        _h5(home / f"{slide}.h5", arrays, features={"encoder": "uni_v1", "name": slide}, coords=said)
    return folder


def write_stamp(cohort: Invented, folder: Path) -> tuple[Path, Path, Path]:
    """STAMP's feature folder and its two tables: (features, labels per patient, slides)."""
    home = folder / "uni2-3af1"
    for slide, features in cohort.features.items():
        arrays = {"feats": features.astype(np.float16), "coords": cohort.coords(slide, 256).astype(np.float32)}
        said = {"stamp_version": "2.4.0", "extractor": "uni2", "unit": "um", "tile_size_um": 256.0}
        _h5(home / f"{slide}.h5", arrays, said)
    patients = cohort.table.drop_duplicates("case_id").rename(columns={"case_id": "PATIENT"})
    patients.drop(columns="slide_id").to_csv(folder / "clini.csv", index=False)
    files = cohort.table.rename(columns={"case_id": "PATIENT"}).assign(FILENAME=cohort.table["slide_id"] + ".h5")
    files[["PATIENT", "FILENAME"]].to_csv(folder / "slide.csv", index=False)
    return home, folder / "clini.csv", folder / "slide.csv"


def write_plain(cohort: Invented, folder: Path, kind: str = "npy") -> Path:
    """One .npy or .npz file a slide."""
    folder.mkdir(parents=True)
    for slide, features in cohort.features.items():
        if kind == "npy":
            np.save(folder / f"{slide}.npy", features)
        else:
            np.savez(folder / f"{slide}.npz", features=features, coords=cohort.coords(slide))
    return folder


def write_labels(cohort: Invented, path: Path) -> Path:
    """The label table as csv."""
    cohort.table.to_csv(path, index=False)
    return path


def _h5(path: Path, arrays: dict[str, np.ndarray], file_attributes: dict[str, Any] | None = None, **of: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(file_attributes or {})
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
            file[name].attrs.update(of.get(name, {}))
