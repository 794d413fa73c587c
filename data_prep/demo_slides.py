"""Command: slides that look like stained tissue, with what is true about them, to try everything without data.

Each slide is a pyramidal TIFF that OpenSlide opens: pieces of tissue with fibres, nuclei and glands on glass, in stains that vary
from slide to slide; every second slide has a lesion (dense, large, dark nuclei). `OUT/truth/SLIDE_tissue.png` is the tissue at 1/8
of the size, `OUT/truth/SLIDE.geojson` the lesion's outline, `OUT/labels.csv` says which slides have one. They are drawn, not scanned:
nothing about real tissue can be learned from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags

from data_prep.cli import parsed, progress
from data_prep.slides.tiff import write_pyramid
from mil_jax.cli.console import run_command, say
from mil_jax.files import atomic_write, write_text
from mil_jax.interop.feature_files import counted

ABOUT = """Draws slides of invented tissue, to try data preparation, training and heat maps without data.

usage: python -m data_prep.demo_slides --out DIR [--count N]

example:
  python -m data_prep.demo_slides --out slides/ --count 20
  python -m data_prep.tile --slides slides/ --out work/ --mpp 0.5 --labels slides/truth/"""

TRUTH_DOWNSAMPLE = 8
LEVEL_DOWNSAMPLES = (1, 4, 16)
LESION = "lesion"
# Haematoxylin and eosin (Macenko et al. 2009).
_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], np.float32)
_GLASS = 243.0


@dataclass(frozen=True)
class Drawn:
    """picture: [h, w, 3] uint8. tissue, lesion: [h / 8, w / 8] bool."""

    picture: np.ndarray
    tissue: np.ndarray
    lesion: np.ndarray


def draw_slide(seed: int, width: int = 4096, height: int = 3072, lesion: bool = False) -> Drawn:
    """Draws one slide, the same for the same arguments. width, height: multiples of 16."""
    rng = np.random.default_rng(seed)
    tissue_field = _tissue_field(rng, width, height)
    tissue = cv2.resize(tissue_field, (width, height), interpolation=cv2.INTER_LINEAR) > 0
    lesion_field = _lesion_field(rng, tissue_field) if lesion else np.full_like(tissue_field, -1)
    diseased = (cv2.resize(lesion_field, (width, height), interpolation=cv2.INTER_LINEAR) > 0) & tissue
    fibres = _noise(rng, width, height, (6, 12, 60)) + 0.5 * _noise(rng, width, height, (200, 160))
    eosin = np.where(diseased, np.float32(0.45), np.float32(0.75)) + 0.22 * fibres
    haematoxylin = 0.12 + 0.05 * fibres
    eosin[_lumens(rng, tissue, diseased)] = 0.18
    _draw_nuclei(rng, haematoxylin, tissue, diseased)
    concentrations = np.stack([haematoxylin, eosin], axis=-1).clip(0.02)
    concentrations *= rng.uniform(0.85, 1.2, 2).astype(np.float32)
    stains = _STAINS + rng.normal(0, 0.03, _STAINS.shape)
    stains = (stains / np.linalg.norm(stains, axis=1, keepdims=True)).astype(np.float32)
    soft = cv2.GaussianBlur(tissue.astype(np.float32), (0, 0), 1.2)[..., None]
    picture = _GLASS * np.exp(-(concentrations * soft) @ stains)
    picture += rng.standard_normal((height, width, 1), np.float32)
    small = (width // TRUTH_DOWNSAMPLE, height // TRUTH_DOWNSAMPLE)
    return Drawn(
        np.clip(picture, 0, 255).astype(np.uint8),
        _shrunk(tissue, small),
        _shrunk(diseased, small),
    )


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5


def _noise(rng: np.random.Generator, width: int, height: int, scales: tuple[int, ...]) -> np.ndarray:
    """Smooth noise with structures of so many pixels, deviation about 1, [h, w] float32."""
    total = np.zeros((height, width), np.float32)
    for scale in scales:
        cells = rng.standard_normal((height // scale + 2, width // scale + 2), np.float32)
        total += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return total / len(scales) ** 0.5


def _tissue_field(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Positive where there is tissue: two or three blobs with ragged borders, one with a large hole; at 1/16 of the size."""
    columns, rows = width // 16, height // 16
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    unit = min(columns, rows)
    ragged = 0.16 * _noise(rng, columns, rows, (unit // 5, unit // 12)) + 0.05 * _noise(rng, columns, rows, (6,))
    field = np.full((rows, columns), -1, np.float32)
    centres = rng.permutation([(0.27, 0.35), (0.70, 0.33), (0.48, 0.72)])[: rng.integers(2, 4)]
    for number, (across, down) in enumerate(centres):
        radii = rng.uniform(0.22, 0.29, 2) * unit
        away = np.hypot((x - across * columns) / radii[0], (y - down * rows) / radii[1])
        blob = 1 - away + ragged
        if number == 0:  # a vessel, larger than the limit below which holes are filled
            blob = np.minimum(blob, np.hypot(x - across * columns, y - down * rows) / (0.12 * unit) - 1)
        field = np.maximum(field, blob)
    border = np.minimum.reduce([x, y, columns - 1 - x, rows - 1 - y]) / 4 - 1
    return np.minimum(field, border)


def _lesion_field(rng: np.random.Generator, tissue_field: np.ndarray) -> np.ndarray:
    """Positive in a ragged disc around a place well inside the tissue."""
    rows, columns = tissue_field.shape
    inside = cv2.distanceTransform((tissue_field > 0).astype(np.uint8), cv2.DIST_L2, 5)
    row, column = np.unravel_index(np.argmax(inside + rng.uniform(0, 2, inside.shape)), inside.shape)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    radius = 0.19 * min(rows, columns)
    return 1 - np.hypot(x - column, y - row) / radius + 0.12 * _noise(rng, columns, rows, (12,))


def _lumens(rng: np.random.Generator, tissue: np.ndarray, diseased: np.ndarray) -> np.ndarray:
    """The openings of glands, bool [h, w]: small pale ellipses in healthy tissue."""
    drawn = np.zeros(tissue.shape, np.uint8)
    for x, y in _places(rng, tissue & ~diseased, 1 / 90_000):
        axes = rng.integers(12, 45, 2).tolist()
        cv2.ellipse(drawn, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
    return drawn.astype(bool)


def _draw_nuclei(rng: np.random.Generator, haematoxylin: np.ndarray, tissue: np.ndarray, diseased: np.ndarray) -> None:
    """Adds nuclei in place: few, small ones in healthy tissue; many large ones, of any darkness, in the lesion."""
    for where, density, sizes in ((tissue & ~diseased, 1 / 900, (4, 8)), (diseased, 1 / 260, (6, 13))):
        for x, y in _places(rng, where, density):
            axes = rng.integers(*sizes, 2).tolist()
            cv2.ellipse(
                haematoxylin, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.7, 1.5)), cv2.FILLED
            )


def _places(rng: np.random.Generator, where: np.ndarray, density: float) -> list[list[int]]:
    """Random pixels (x, y) of a mask, so many per pixel."""
    height, width = where.shape
    count = rng.poisson(density * height * width)
    x, y = rng.integers(0, width, count), rng.integers(0, height, count)
    return np.stack([x, y], axis=1)[where[y, x]].tolist()


def lesion_geojson(lesion: np.ndarray) -> dict[str, Any]:
    """The outline of a lesion [h / 8, w / 8] as QuPath exports annotations."""
    contours, _ = cv2.findContours(lesion.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    features = []
    for contour in contours:
        if len(contour) < 3:
            continue
        ring = ((contour[:, 0] + 0.5) * TRUTH_DOWNSAMPLE).tolist()
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
                "properties": {"objectType": "annotation", "classification": {"name": LESION}},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def write_slide(folder: Path, name: str, drawn: Drawn, mpp: float) -> None:
    """Writes a slide and what is true about it."""
    height, width = drawn.picture.shape[:2]
    levels = [
        drawn.picture
        if factor == 1
        else cv2.resize(drawn.picture, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
        for factor in LEVEL_DOWNSAMPLES
    ]
    write_pyramid(folder / f"{name}.tiff", levels, mpp)
    with atomic_write(folder / "truth" / f"{name}_tissue.png") as temporary:
        temporary.write_bytes(cv2.imencode(".png", drawn.tissue.astype(np.uint8) * 255)[1].tobytes())
    write_text(folder / "truth" / f"{name}.geojson", json.dumps(lesion_geojson(drawn.lesion)) + "\n")


def define_flags(values: flags.FlagValues) -> None:
    """The command's settings."""
    flags.DEFINE_string("out", "", "folder of slides to write", flag_values=values)
    flags.DEFINE_integer("count", 20, "number of slides", lower_bound=1, upper_bound=10_000, flag_values=values)
    flags.DEFINE_integer("seed", 0, "other slides with another seed", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("width", 4096, "pixels", lower_bound=1024, upper_bound=16_384, flag_values=values)
    flags.DEFINE_integer("height", 3072, "pixels", lower_bound=1024, upper_bound=16_384, flag_values=values)
    flags.DEFINE_float("mpp", 0.5, "micrometres per pixel", lower_bound=0.05, upper_bound=20.0, flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parsed("data_prep.demo_slides", arguments, define_flags, ABOUT, needed=("out",))
    if values is None:
        return 0
    folder = Path(values.out)
    width, height = (side // 16 * 16 for side in (values.width, values.height))
    digits = max(2, len(str(values.count)))
    rows = ["slide_id,case_id,label"]
    with progress("slides", values.count) as advance:
        for number in range(1, values.count + 1):
            name, lesion = f"demo_{number:0{digits}}", number % 2 == 0
            write_slide(folder, name, draw_slide(1000 * values.seed + number, width, height, lesion), values.mpp)
            rows.append(f"{name},P{number:0{digits}},{LESION if lesion else 'normal'}")
            advance(name)
    write_text(folder / "labels.csv", "\n".join(rows) + "\n")
    say(
        f"Drew {counted(values.count, 'slide')} of {width} x {height} pixels at {values.mpp:g} um in {folder}, "
        f"{values.count // 2} with a lesion (labels.csv, truth/)"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
