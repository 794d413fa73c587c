"""features.json of a run folder: what the features of the training bags are, so that another cohort's can be compared with them.

Width, encoder and tile size of other features must be those of the run; how far they lie from it is a number for people.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_jax.data.loading.feature_moments import BagMoments, FeatureMoments, cohort_moments
from mil_jax.data.shards.reader import Shards
from mil_jax.data.tables import listed
from mil_jax.errors import DataError
from mil_jax.interop.slide_bag import UNKNOWN
from mil_jax.run_folder.folder import RunFolder, understood

FILE = "features.json"
_SAME_SIZE = 0.05  # tile sizes in micrometres that differ by less, relatively, are the same: scanners round


@dataclass(frozen=True)
class FeatureKind:
    """shape: of an instance. encoders, tile_sizes: names, and micrometres, that the slides' files give; empty where none does."""

    shape: tuple[int, ...]
    encoders: tuple[str, ...]
    tile_sizes: tuple[float, ...]

    @classmethod
    def of(cls, shards: Shards, slides: np.ndarray) -> FeatureKind:
        """slides: numbers of those in use."""
        table = shards.provenance.iloc[np.unique(slides)]
        encoders = sorted({name for name in table["encoder"] if name != UNKNOWN})
        return cls(shards.feature_shape, tuple(encoders), tuple(sorted(set(_tile_sizes(table)))))


def write(folder: RunFolder, kind: FeatureKind, moments: FeatureMoments) -> None:
    """Writes the file."""
    vectors = {name: getattr(moments, name) for name in ("mean", "variance", "between")}
    content = {"shape": kind.shape, "encoders": kind.encoders, "tile_sizes_um": kind.tile_sizes, "bags": moments.bags}
    folder.write_json(FILE, content | {name: [float(f"{x:.9g}") for x in values] for name, values in vectors.items()})


def read(folder: RunFolder) -> tuple[FeatureKind, FeatureMoments]:
    """Reads the file. Raises RunFolderError when it is not there or damaged."""
    content = folder.read_json(FILE)
    with understood(folder.path / FILE):
        kind = FeatureKind(
            tuple(map(int, content["shape"])),
            tuple(map(str, content["encoders"])),
            tuple(map(float, content["tile_sizes_um"])),
        )
        mean, variance, between = (np.asarray(content[name], np.float64) for name in ("mean", "variance", "between"))
        return kind, FeatureMoments(mean, variance, between, int(content["bags"]))


def training_moments(bags: BagMoments, training: np.ndarray) -> FeatureMoments:
    """training: bool [M], the bags in any training part."""
    return cohort_moments(BagMoments(bags.means[training], bags.variances[training]))


def require_same(trained: FeatureKind, other: FeatureKind, where: str, accepted: Collection[str] = ()) -> list[str]:
    """Sentences on what cannot be compared, or differs and is `accepted` (of `FEATURE_DIFFERENCES`).

    Raises DataError where features differ from those that a run was trained on, naming both values.
    """
    if other.shape != trained.shape:
        raise DataError(
            f"{where}: features of shape {_shape(other.shape)}, and the run was trained on {_shape(trained.shape)}; name features of "
            "the run's encoder"
        )
    said = []
    encoders = f"encoder {listed(other.encoders)}", f"trained on {listed(trained.encoders)}"
    sizes = f"tiles of {_sizes(other)} um", f"trained on tiles of {_sizes(trained)} um"
    checks = (
        ("encoder", trained.encoders, other.encoders, set(other.encoders) <= set(trained.encoders), encoders),
        ("tile_size", trained.tile_sizes, other.tile_sizes, _same_sizes(trained, other), sizes),
    )
    for name, of_run, of_other, same, (found, expected) in checks:
        what = name.replace("_", " ")
        if not (of_run and of_other):
            silent = " and ".join(who for who, values in (("the run's", of_run), ("these", of_other)) if not values)
            said.append(f"{where}: the {what} is not compared, since the files of {silent} features do not say it")
        elif not same and name not in accepted:
            raise DataError(
                f"{where}: {found}, and the run was {expected}; name features like the run's, or accept this with --accept={name}"
            )
        elif not same:
            said.append(f"{where}: {found}, and the run was {expected} (accepted by --accept={name})")
    return said


def _tile_sizes(table: pd.DataFrame) -> list[float]:
    """Micrometres of the tiles of slides that say it."""
    scale = np.where(table["coordinate_unit"] == "um", 1.0, table["mpp_level0"])
    sizes = table["tile_size_level0"].to_numpy(np.float64) * scale.astype(np.float64)
    return [round(float(size), 1) for size in sizes if np.isfinite(size)]


def _same_sizes(trained: FeatureKind, other: FeatureKind) -> bool:
    return all(
        any(abs(size - known) <= _SAME_SIZE * known for known in trained.tile_sizes) for size in other.tile_sizes
    )


def _sizes(kind: FeatureKind) -> str:
    return listed(f"{size:g}" for size in kind.tile_sizes)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
