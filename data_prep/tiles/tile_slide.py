"""One slide to its tiles: tissue, grid, filters, then the coordinate files, the pictures and the row of the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from data_prep.jobs import EMPTY, OK, Records, Row, Slide, SlideError
from data_prep.slides.annotations import NO_ROI, Outlines, by_name, draw, read_outlines
from data_prep.slides.open_slide import SlideScale, opened, scale_of, shown_corner
from data_prep.slides.segmentation import Segmentation, Tissue, restricted, segment
from data_prep.tiles.coordinates import COORDS, Coordinates, coords_folder, write_coordinates
from data_prep.tiles.grid import Shares, Tiling, by_level, by_magnification, by_mpp, contour_grid, grid, parents
from data_prep.tiles.pictures import MOST_IN_MONTAGE, write_montage, write_overview
from data_prep.tiles.quality import MEASURES, measure, refused
from data_prep.tiles.read import read_tiles
from mil_jax.files import id_file

QC = "qc"
COLUMNS = (
    *("tiles", "dropped", "tiles_coarser", "tissue_mm2", "tile_um", "tile_size_level0", "level", "resampled", "mpp"),
    *("magnification", "width", "height", "background", "threshold", "annotations_left_out"),
)
ORIGINS = ("bounds", "level0")


@dataclass(frozen=True)
class TileSettings:
    """How slides are tiled; the flags of the command.

    kind: `mpp`, `magnification` or `level`. scales: values of it, the finest first. step: in pixels of the level, with `level` only.
    limits: of the quality measures, `max_pen` and the like. measure_quality: even without limits.
    """

    kind: str
    scales: tuple[float, ...]
    tile: int
    overlap: int = 0
    step: int = 0
    min_tissue: float = 0.25
    segmentation: Segmentation = field(default_factory=Segmentation)
    measure_quality: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SlideInputs:
    """What belongs to one slide beside its file: values from the user's tables (NaN = none) and annotation files (None = none).

    origin: where the coordinates of QuPath's files begin, one of ORIGINS: at the part of the slide that it shows, or at the slide's corner.
    """

    mpp: float = math.nan
    magnification: float = math.nan
    roi: Path | None = None
    exclude: Path | None = None
    labels: Path | None = None
    needs_roi: bool = False
    origin: str = ORIGINS[0]

    def fingerprint(self) -> list[Any]:
        """What must be the same for the slide's tiles to stay valid."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) if path else None for path in self.files()]
        return [
            *(None if math.isnan(value) else value for value in (self.mpp, self.magnification)),
            self.needs_roi,
            *files,
            *([self.origin] if any(files) and self.origin != ORIGINS[0] else []),
        ]

    def outlines(self, slide: openslide.OpenSlide) -> dict[str, Outlines]:
        """What the annotation files hold, by their use: `roi`, `exclude`, `labels`. Raises SlideError."""
        bounds = shown_corner(slide) if self.origin == "bounds" else (0.0, 0.0)
        named = zip(("roi", "exclude", "labels"), self.files())
        return {use: read_outlines(path, bounds) for use, path in named if path is not None}

    def files(self) -> tuple[Path | None, ...]:
        """The annotation files."""
        return self.roi, self.exclude, self.labels


def tile_slide(records: Records, settings: TileSettings, threads: int, slide: Slide, own: SlideInputs) -> Row:
    """Tiles one slide and writes all its files; returns its row of the report."""

    def compute() -> Row:
        _remove_files(records.work, slide.slide_id)  # of the slide as it was before
        with opened(slide.path) as opened_slide:
            return _tile(records.work, opened_slide, slide, settings, own, threads)

    return records.run(slide, compute, own.fingerprint())


def _remove_files(work: Path, slide_id: str) -> None:
    for path in (
        *(id_file(folder, slide_id, ".h5") for folder in work.glob(f"{COORDS}*")),
        *qc_pictures(work, slide_id),
    ):
        path.unlink(missing_ok=True)


def qc_pictures(work: Path, slide_id: str) -> tuple[Path, Path]:
    """Where the pictures of a slide lie: the overview, and the tiles that a limit of quality dropped."""
    return id_file(work / QC, slide_id, ".jpg"), id_file(work / QC, slide_id, "_dropped.jpg")


def _tile(
    work: Path, opened_slide: openslide.OpenSlide, slide: Slide, settings: TileSettings, own: SlideInputs, threads: int
) -> Row:
    scale = scale_of(opened_slide, own.mpp, own.magnification)
    tilings = _tilings(opened_slide, scale, settings)
    if own.needs_roi and own.roi is None:
        raise SlideError(NO_ROI, "there is no annotation of it in --roi")
    areas = own.outlines(opened_slide)
    if "roi" in areas and not areas["roi"]:
        raise SlideError(NO_ROI, f"{own.roi} holds no areas {_counts(areas['roi'])}".rstrip())
    tissue = _inside(segment(opened_slide, scale.mpp, settings.segmentation), areas)
    shares = Shares(tissue.mask, tissue.downsample)
    coords = _grid(opened_slide, tissue, shares, tilings[0], settings)
    kept, dropped, quality = _good_tiles(work, opened_slide, slide, coords, tilings[0], settings, threads)
    labels = _labels(areas.get("labels"), tissue, kept, tilings[0].edge)
    written = Coordinates(
        slide.slide_id,
        tilings[0],
        kept,
        shares.of(kept, tilings[0].edge),
        scale.mpp,
        scale.magnification,
        opened_slide.dimensions,
        opened_slide.level_dimensions[tilings[0].level],
        slide.size,
        slide.mtime_ns,
        settings.overlap,
        quality=quality,
        labels=labels,
    )
    coarser = _write_scales(work, written, tilings, shares, opened_slide)
    write_overview(qc_pictures(work, slide.slide_id)[0], tissue, tilings[0], kept, dropped)
    reason = "" if len(kept) else _why_empty(tissue, len(dropped), settings)
    first = tilings[0]
    area = float(tissue.mask.sum()) * (tissue.downsample * scale.mpp / 1000) ** 2
    return {
        "status": OK if len(kept) else EMPTY,
        "reason": reason,
        "tiles": len(kept),
        "dropped": len(dropped),
        "tiles_coarser": coarser,
        "tissue_mm2": _rounded(area, 4),
        "tile_um": _rounded(first.edge * scale.mpp, 2),
        "tile_size_level0": first.edge,
        "level": first.level,
        "resampled": first.resampled,
        "mpp": _rounded(scale.mpp, 5),
        "magnification": _rounded(scale.magnification, 3),
        "width": opened_slide.dimensions[0],
        "height": opened_slide.dimensions[1],
        "background": "dark" if tissue.dark else "light",
        "threshold": tissue.threshold,
        "annotations_left_out": "; ".join(f"{use} {text}" for use, own in areas.items() if (text := _counts(own))),
    }


def _why_empty(tissue: Tissue, dropped: int, settings: TileSettings) -> str:
    if dropped:
        return "all tiles were dropped"
    if tissue.mask.any():
        return "no tile holds enough of its tissue"
    return f"no tissue was found of more than a_t={settings.segmentation.a_t:g} squares of 512 pixels"


def _tilings(opened_slide: openslide.OpenSlide, scale: SlideScale, settings: TileSettings) -> list[Tiling]:
    downsamples = opened_slide.level_downsamples
    if settings.kind == "level":
        return [by_level(downsamples, scale, int(settings.scales[0]), settings.tile, settings.step)]
    at = by_mpp if settings.kind == "mpp" else by_magnification
    return [at(downsamples, scale, wanted, settings.tile, settings.overlap) for wanted in settings.scales]


def _inside(tissue: Tissue, areas: Mapping[str, Outlines]) -> Tissue:
    """The tissue inside the regions of interest and outside the excluded ones."""
    if "roi" in areas:
        tissue = restricted(tissue, draw(areas["roi"], tissue.mask.shape, tissue.downsample))
    if "exclude" in areas:
        tissue = restricted(tissue, ~draw(areas["exclude"], tissue.mask.shape, tissue.downsample))
    return tissue


def _counts(areas: Outlines) -> str:
    """`(2 points and lines)`: what of a file of annotations is no area; nothing where that is nothing."""
    counts = ", ".join(f"{count} {kind}" for kind, count in areas.left_out.items())
    return counts and f"({counts})"


def _grid(
    opened_slide: openslide.OpenSlide, tissue: Tissue, shares: Shares, tiling: Tiling, settings: TileSettings
) -> np.ndarray:
    contour_fn = settings.segmentation.contour_fn
    if contour_fn == "share":
        coords = grid(opened_slide.dimensions, tiling)
        return coords[shares.of(coords, tiling.edge) >= settings.min_tissue]
    return contour_grid(tissue.contours, tissue.downsample, tiling, contour_fn)


def _good_tiles(
    work: Path,
    opened_slide: openslide.OpenSlide,
    slide: Slide,
    coords: np.ndarray,
    tiling: Tiling,
    settings: TileSettings,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(tiles that pass the limits, those that do not, the measures of the former); a picture of the latter is written."""
    if not settings.measure_quality:
        return coords, coords[:0], {}
    with closing(read_tiles(opened_slide, tiling, coords, threads)) as tiles_in_order:
        measures = [measure(tile) for tile in tiles_in_order]
    table = np.array(measures, np.float32).reshape(-1, len(MEASURES))
    words = refused(table, settings.limits)
    bad = np.flatnonzero(words)
    if len(bad):
        shown = bad[np.unique(np.linspace(0, len(bad) - 1, min(len(bad), MOST_IN_MONTAGE)).astype(int))]
        tiles = list(read_tiles(opened_slide, tiling, coords[shown], threads))
        write_montage(qc_pictures(work, slide.slide_id)[1], tiles, [words[number] for number in shown])
    good = np.delete(np.arange(len(coords)), bad)
    return coords[good], coords[bad], dict(zip(MEASURES, table[good].T))


def _labels(areas: Outlines | None, tissue: Tissue, coords: np.ndarray, edge: int) -> dict[str, np.ndarray]:
    """For each class of annotations the share of every tile that it covers."""
    return {
        name: Shares(draw(own, tissue.mask.shape, tissue.downsample), tissue.downsample).of(coords, edge)
        for name, own in by_name(areas or []).items()
    }


def _write_scales(
    work: Path, finest: Coordinates, tilings: list[Tiling], shares: Shares, opened_slide: openslide.OpenSlide
) -> int:
    """Writes a coordinate file per scale, each with the parents of its tiles in the next; returns the coarsest's tiles."""
    made = finest
    for number, tiling in enumerate(tilings):
        path = id_file(coords_folder(work, number), made.slide_id, ".h5")
        if number + 1 == len(tilings):
            write_coordinates(path, made)
            break
        coarser = tilings[number + 1]
        corners, parent = parents(made.coords, tiling, coarser)
        write_coordinates(path, dataclasses.replace(made, parent=parent))
        made = dataclasses.replace(
            made,
            tiling=coarser,
            coords=corners,
            tissue=shares.of(corners, coarser.edge),
            level_dimensions=opened_slide.level_dimensions[coarser.level],
            quality={},
            labels={},
        )
    return len(made.coords) if len(tilings) > 1 else 0


def _rounded(value: float, digits: int) -> float | str:
    """For the report: unknown values are empty cells."""
    return "" if math.isnan(value) else round(value, digits)
