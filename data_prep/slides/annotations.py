"""Outlines that people drew: QuPath's GeoJSON, ASAP's XML, TRIDENT's contours (GeoJSON), all in level-0 pixels.

A folder holds one file per slide, named after it: `SLIDE.geojson`, `SLIDE.json` or `SLIDE.xml`.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.jobs import SlideError
from mil_jax.errors import DataError
from mil_jax.interop.slide_bag import slide_id_of

EXTENSIONS = (".geojson", ".json", ".xml")
NO_ROI, BAD_ANNOTATION = "no roi", "bad annotation"
UNNAMED = "annotation"
_FRACTION_BITS = 4  # of the corners of polygons that are drawn
_AREAS = ("Polygon", "Rectangle", "Spline")  # of ASAP; the others are points and lines
_FARTHEST = 1e12  # no slide has so many pixels
_DETECTIONS = ("cell", "detection", "tile")  # of QuPath: found by a program, by the thousand


@dataclass(frozen=True)
class Outline:
    """One area. name: its class. rings: its outline and those of its holes, each [k, 2] float64 level-0 pixels."""

    name: str
    rings: tuple[np.ndarray, ...]


class Outlines(list[Outline]):
    """The areas of one file. left_out: what else it holds, with counts."""

    def __init__(self, areas: list[Outline], left_out: Counter[str]) -> None:
        super().__init__(areas)
        self.left_out = left_out


def annotation_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The annotation file of each slide id. Raises DataError where there is no such folder, or a slide has two files."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder of annotations")
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            first = found.setdefault(slide_id_of(path.stem), path)
            if first != path:
                raise DataError(f"{first} and {path} are both annotations of one slide; remove one of them")
    if not found:
        raise DataError(f"{root}: no annotations found; they are files SLIDE{EXTENSIONS[0]} or SLIDE{EXTENSIONS[2]}")
    return found


def read_outlines(path: Path, bounds: tuple[float, float] = (0.0, 0.0)) -> Outlines:
    """The areas of an annotation file; points, lines, detections and areas without a shape are left out, and counted.

    bounds: the corner (x, y) of the part of the slide that QuPath shows, in level-0 pixels. Coordinates of its annotations begin
    there; those of other programs at the slide's own corner.

    Raises SlideError where the file cannot be read.
    """
    left_out: Counter[str] = Counter()
    try:
        if path.suffix.lower() == ".xml":
            areas = _from_asap(ElementTree.fromstring(path.read_bytes()), left_out)
        else:
            areas = _from_geojson(json.loads(path.read_text(encoding="utf-8-sig")), np.asarray(bounds), left_out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ElementTree.ParseError) as error:
        raise SlideError(
            BAD_ANNOTATION, f"{path.name} cannot be read as annotations ({error}); export it again"
        ) from error
    return Outlines(areas, left_out)


def _from_geojson(content: Any, bounds: np.ndarray, left_out: Counter[str]) -> list[Outline]:
    features = content if isinstance(content, list) else content.get("features", [content])
    outlines = []
    for feature in features:
        properties = feature.get("properties") or {}
        kind = properties.get("objectType")  # QuPath's own; others have none
        if kind in _DETECTIONS:
            left_out["detections"] += 1
            continue
        name = _class_name(properties.get("classification")) or str(properties.get("name") or UNNAMED)
        for polygon in _polygons(feature.get("geometry", feature), left_out):
            rings = _rings(polygon, left_out)
            if rings:
                outlines.append(Outline(name, tuple(ring + bounds if kind else ring for ring in rings)))
    return outlines


def _class_name(said: Any) -> str:
    """QuPath has written {"name": "Tumor"}, {"names": ["Tumor", "Positive"]} (shown as `Tumor: Positive`), "Tumor" and null."""
    if isinstance(said, str) and said.lstrip().startswith("{"):  # tables of geometries keep the object as text
        said = json.loads(said)
    if isinstance(said, dict):
        said = said.get("name") or ": ".join(said.get("names") or [])
    return str(said or "")


def _polygons(geometry: Any, left_out: Counter[str]) -> Iterator[list[Any]]:
    kind = geometry["type"] if geometry else None
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part, left_out)
    else:
        left_out["points and lines" if kind else "without a shape"] += 1


def _from_asap(root: ElementTree.Element, left_out: Counter[str]) -> list[Outline]:
    outlines = []
    for annotation in root.iter("Annotation"):
        if annotation.get("Type", _AREAS[0]) not in _AREAS:
            left_out["points and lines"] += 1
            continue
        corners = sorted(annotation.iter("Coordinate"), key=lambda corner: float(corner.get("Order", 0)))
        rings = _rings([[(corner.attrib["X"], corner.attrib["Y"]) for corner in corners]], left_out)
        group = annotation.get("PartOfGroup", "None")
        if rings:
            outlines.append(Outline(UNNAMED if group in ("", "None") else group, rings))
    return outlines


def _rings(polygon: list[Any], left_out: Counter[str]) -> tuple[np.ndarray, ...]:
    """The outline and its holes, [k, 2] each; nothing where the outline has no area."""
    rings = []
    for number, corners in enumerate(polygon):
        ring = np.asarray(corners, np.float64)
        if len(ring) >= 3 and (ring.ndim != 2 or ring.shape[1] < 2 or not (np.abs(ring) < _FARTHEST).all()):
            raise ValueError("corners are pairs of numbers, in pixels")
        if len(ring) >= 3:
            rings.append(ring[:, :2])
        elif number == 0:
            break
    if not rings:
        left_out["with fewer than three corners"] += 1
    return tuple(rings)


def draw(outlines: Sequence[Outline], shape: tuple[int, int], downsample: float) -> np.ndarray:
    """The areas as a mask [h, w] bool, in pixels of `downsample` level-0 pixels."""
    mask = np.zeros(shape, np.uint8)
    for outline in outlines:
        # Pixel centres lie at whole numbers in OpenCV, half a pixel off.
        inside = [_clipped(ring / downsample - 0.5, shape) for ring in outline.rings]
        rings = [np.rint(ring * 2**_FRACTION_BITS).astype(np.int32) for ring in inside if len(ring)]
        if rings:
            one = np.zeros_like(mask)
            cv2.fillPoly(one, rings, 1, shift=_FRACTION_BITS)
            mask |= one
    return mask.astype(bool)


def _clipped(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The part of a ring [k, 2] near a picture: OpenCV counts in 32 bits, and people draw far beyond the slide.

    Sutherland and Hodgman, Reentrant polygon clipping (1974).
    """
    margin = 2.0  # the border that clipping draws lies outside the picture
    for axis, size in enumerate(shape[::-1]):
        for sign, limit in ((1.0, -margin), (-1.0, -(size + margin))):
            inside = sign * ring[:, axis] >= limit
            if inside.all():
                continue
            kept = []
            for corner, following, here, there in zip(ring, np.roll(ring, -1, 0), inside, np.roll(inside, -1)):
                if here:
                    kept.append(corner)
                if here != there:
                    share = (sign * limit - corner[axis]) / (following[axis] - corner[axis])
                    kept.append(corner + share * (following - corner))
            ring = np.array(kept).reshape(-1, 2)
    return ring


def by_name(outlines: Sequence[Outline]) -> dict[str, list[Outline]]:
    """The areas of each class, the classes in alphabetical order."""
    return {name: [area for area in outlines if area.name == name] for name in sorted({area.name for area in outlines})}
