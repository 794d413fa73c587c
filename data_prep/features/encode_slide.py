"""One slide to its features: its tiles read ahead, encoded in batches, checked, and written with all that says what they are.

The file has `features` [n, D] and `coords` [n, 2] (and `parent`, for several scales), contiguous, with the attributes of CLAM's and
TRIDENT's coordinate files, and on `features` the encoder, its weights, precision and preprocessing. Always the same bytes for the same
slide, tiles, weights and kind of machine: nothing in it depends on the time, the order of the slides, or who encoded them.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.features.encoder import Batch, Encoding, batched, prepared
from data_prep.features.prefetch import Prefetcher
from data_prep.jobs import EMPTY, OK, UNREADABLE, Records, Row, Slide, SlideError, find_slides
from data_prep.slides.open_slide import opened
from data_prep.tiles.coordinates import COORDS, Coordinates, coords_folder, read_coordinates
from data_prep.tiles.read import read_tiles
from mil_jax.csv_cells import original
from mil_jax.data.features.checks import cast, finite_rows, ranges
from mil_jax.data.features.report import FeatureReport
from mil_jax.encoders.registry import BILINEAR, ENCODERS, Preprocessing, TileEncoder, bare_encoder, encoder_named
from mil_jax.encoders.weights import load_weights
from mil_jax.errors import DataError
from mil_jax.files import atomic_write, id_file
from mil_jax.interop.array_files import open_arrays

REPLACED, NOT_FINITE = "replaced", "not finite"
COLUMNS = (
    *("tiles", "width", "tile_um", "norm", "norm_min", "norm_max", "min", "max", "spread"),
    *("constant_columns", "near_zero_rows", "duplicate_rows"),
)


@dataclass(frozen=True)
class EncodeSettings:
    """How slides are encoded; the flags of the command. weights_identity: of the file's bytes. threads: that read tiles.

    mean, std, input_size, pool, interpolation: of a bare architecture, empty for a named encoder.
    """

    work: str
    encoder: str
    weights: str
    weights_identity: str
    out: str = "features"
    scale: int = 0
    batch_size: int = 64
    precision: str = "float32"
    dtype: str = "float16"
    threads: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_size: int = 0
    pool: str = ""
    interpolation: str = ""

    def tile_encoder(self) -> TileEncoder:
        """The encoder that these settings name. Raises ConfigError for an unknown one."""
        if self.encoder in ENCODERS or not self.input_size:
            return encoder_named(self.encoder)
        mean, std = (tuple(map(float, values)) for values in (self.mean, self.std))
        of_its_own = Preprocessing(self.input_size, mean, std, self.interpolation or BILINEAR)  # type: ignore[arg-type]
        return bare_encoder(self.encoder, of_its_own, self.pool)

    def with_identity(self, identity: Callable[[str], str]) -> EncodeSettings:
        """The same with what identifies its weights, where there are any."""
        exists = not self.weights or Path(self.weights).is_file() or self.weights == "random"
        return dataclasses.replace(self, weights_identity=identity(self.weights) if self.weights and exists else "")

    def recorded(self) -> dict[str, Any]:
        """What decides the numbers, for the records and the files."""
        preprocessing = self.tile_encoder().preprocessing
        return {
            "encoder": self.encoder,
            "weights": self.weights_identity,
            "output": self.tile_encoder().output,
            "scale": self.scale,
            "precision": self.precision,
            "dtype": self.dtype,
            "input_size": preprocessing.crop,
            "resized_to": preprocessing.resized,
            "interpolation": preprocessing.interpolation,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        }


def outputs(settings: EncodeSettings) -> Path:
    """The folder of the feature files."""
    return Path(settings.work) / settings.out


def tiled_slides(work: str, scale: int, moved_to: str = "") -> tuple[list[Slide], int]:
    """The slides that have been tiled, in the order of the report, and how many have no tiles.

    moved_to: a folder where the slides lie now. Raises DataError where nothing has been tiled, or tiled slides are not in that folder.
    """
    table = Path(work) / "tiles.csv"
    if not table.is_file():
        raise DataError(f"{table}: not there; find the tiles first, with python -m data_prep.tile --out {work}")
    if scale and not coords_folder(work, scale).is_dir():
        raise DataError(f"{coords_folder(work, scale)}: not there; tile at several scales first (--mpp=0.5,2)")
    with table.open(encoding="utf-8", newline="") as file:
        rows = [{name: original(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    places = {slide.slide_id: slide.path for slide in find_slides(moved_to)} if moved_to else {}
    slides = []
    for row in rows:
        if row["status"] == OK:
            path = places.get(row["slide"], Path(row["path"]))
            size, mtime_ns = int(row["size"]), int(row["mtime_ns"])
            if path.exists():  # else features that there are stay valid
                size, mtime_ns = path.stat().st_size, path.stat().st_mtime_ns
            slides.append(Slide(row["slide"], path, size, mtime_ns))
    if moved_to and not any(slide.slide_id in places for slide in slides):
        raise DataError(f"{moved_to}: holds none of the slides of {table}")
    if not slides:
        raise DataError(f"{table}: no slide has tiles; it says why")
    return slides, len(rows) - len(slides)


def inputs_of(settings: EncodeSettings, slide: Slide) -> Any:
    """What must be the same for a slide's features to stay valid: its coordinates."""
    path = id_file(coords_folder(settings.work, settings.scale), slide.slide_id, ".h5")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


class SlideEncoder:
    """Encodes slides sequentially, with an encoder that is loaded and compiled once."""

    def __init__(self, records: Records, settings: EncodeSettings) -> None:
        """Raises ConfigError without weights, and DataError for weights that do not fit."""
        self.records, self.settings = records, settings
        encoder, params = load_weights(settings.tile_encoder(), settings.weights)
        self._encoding = Encoding(encoder, params, settings.batch_size, settings.precision)

    def run(self, slides: Sequence[Slide]) -> Iterator[Row]:
        """The rows of all slides; the next slide is read while one is encoded."""
        with Prefetcher(slides, self._read) as ahead:
            for slide in slides:
                compute = functools.partial(self._compute, slide, ahead)
                yield self.records.run(slide, compute, inputs_of(self.settings, slide))

    def _coordinates(self, slide: Slide) -> Coordinates:
        path = id_file(coords_folder(self.settings.work, self.settings.scale), slide.slide_id, ".h5")
        try:
            return read_coordinates(path)
        except DataError as error:
            raise SlideError(UNREADABLE, str(error)) from error

    def _read(self, slide: Slide) -> Iterator[Batch]:
        made = self._coordinates(slide)
        if not slide.is_as_in({"size": made.size, "mtime_ns": made.mtime_ns}):
            raise SlideError(
                REPLACED, "the slide's file was replaced after its tiles were found; run data_prep.tile again"
            )
        preprocessing = self._encoding.encoder.preprocessing
        change = functools.partial(prepared, preprocessing=preprocessing)
        with opened(slide.path) as opened_slide:
            tiles = read_tiles(opened_slide, made.tiling, made.coords, self.settings.threads, change)
            yield from batched(tiles, self._encoding.batch_size)

    def _compute(self, slide: Slide, ahead: Prefetcher) -> Row:
        path = id_file(outputs(self.settings), slide.slide_id, ".h5")
        path.unlink(missing_ok=True)  # of the slide as it was before
        made = self._coordinates(slide)
        encoded = list(self._encoding(ahead.batches(slide)))
        width = self._encoding.encoder.width
        features = np.concatenate([*encoded, np.zeros((0, width), np.float32)])
        finite = finite_rows(features)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            raise SlideError(
                NOT_FINITE,
                f"{bad.size} of {len(finite)} rows, {ranges(bad[:5])}; check the weights, or --precision=float32",
            )
        try:
            features, _ = cast(features, np.dtype(self.settings.dtype), f"slide {slide.slide_id}")
        except DataError as error:
            raise SlideError(NOT_FINITE, f"{error} (--dtype=float32)") from error
        source = id_file(coords_folder(self.settings.work, self.settings.scale), slide.slide_id, ".h5")
        write_features(path, features, made, source, self.settings)
        return {"status": OK if len(features) else EMPTY, **_row(slide.slide_id, features, made)}


def write_features(path: Path, features: np.ndarray, made: Coordinates, source: Path, settings: EncodeSettings) -> None:
    """Writes a slide's feature file whole. features: [n, D]. source: its coordinate file, whose attributes are kept."""
    attributes = open_arrays(source).attributes[COORDS]
    content = io.BytesIO()  # HDF5 does not say that a disk is full in a way that can be told
    with h5py.File(content, "w") as file:
        dataset = file.create_dataset("features", data=features)
        dataset.attrs.update({"name": made.slide_id, "savetodir": settings.out, **settings.recorded()})
        file.create_dataset(COORDS, data=made.coords).attrs.update(attributes)
        if made.parent is not None:
            file.create_dataset("parent", data=made.parent)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _row(slide_id: str, features: np.ndarray, made: Coordinates) -> Row:
    """The columns of the report."""
    row: Row = {
        "tiles": len(features),
        "width": features.shape[1],
        "tile_um": _rounded(made.tiling.mpp * made.tiling.tile),
    }
    if not len(features):
        return row
    report = FeatureReport()
    report.add(slide_id, features)
    seen = report.summary()
    of_slide = seen["slides"][0]
    return row | {
        "norm": _rounded(of_slide["norm_mean"]),
        "norm_min": _rounded(of_slide["norm_min"]),
        "norm_max": _rounded(of_slide["norm_max"]),
        "min": _rounded(seen["min"]),
        "max": _rounded(seen["max"]),
        "spread": _rounded(seen["spread"]),
        "constant_columns": len(seen["constant_columns"]),
        "near_zero_rows": seen["near_zero_rows"],
        "duplicate_rows": seen["duplicate_rows"],
    }


def _rounded(number: float) -> float | str:
    """Five digits, as the report shows them; unknown is empty."""
    return "" if math.isnan(number) else float(f"{number:.5g}")
