"""Outlines that people drew: QuPath's GeoJSON, ASAP's XML, TRIDENT's contours (GeoJSON), all in level-0 pixels.

A folder holds one file per slide, named after it: `SLIDE.geojson`, `SLIDE.json` or `SLIDE.xml`.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
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


@dataclass(frozen=True)
class Outline:
    """One area. name: its class. rings: its outline and those of its holes, each [k, 2] float64 level-0 pixels."""

    name: str
    rings: tuple[np.ndarray, ...]


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


def read_outlines(path: Path) -> list[Outline]:
    """The areas of an annotation file; points and lines are left out. Raises SlideError where it cannot be read."""
    try:
        if path.suffix.lower() == ".xml":
            return _from_asap(ElementTree.fromstring(path.read_bytes()))
        return _from_geojson(json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise SlideError(
            BAD_ANNOTATION, f"{path.name} cannot be read as annotations ({error}); export it again"
        ) from error


def _from_geojson(content: Any) -> list[Outline]:
    features = content if isinstance(content, list) else content.get("features", [content])
    outlines = []
    for feature in features:
        geometry = feature.get("geometry", feature)
        properties = feature.get("properties") or {}
        name = str((properties.get("classification") or {}).get("name") or properties.get("name") or UNNAMED)
        if geometry["type"] in ("Polygon", "MultiPolygon"):
            polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            outlines += [Outline(name, tuple(_ring(ring) for ring in polygon)) for polygon in polygons]
    return outlines


def _from_asap(root: ElementTree.Element) -> list[Outline]:
    outlines = []
    for annotation in root.iter("Annotation"):
        if annotation.get("Type", _AREAS[0]) not in _AREAS:
            continue
        corners = sorted(annotation.iter("Coordinate"), key=lambda corner: float(corner.get("Order", 0)))
        ring = _ring([(corner.attrib["X"], corner.attrib["Y"]) for corner in corners])
        group = annotation.get("PartOfGroup", "None")
        outlines.append(Outline(UNNAMED if group in ("", "None") else group, (ring,)))
    return outlines


def _ring(corners: Any) -> np.ndarray:
    ring = np.asarray(corners, np.float64)
    if ring.ndim != 2 or len(ring) < 3 or ring.shape[1] < 2 or not np.isfinite(ring).all():
        raise ValueError("an area needs at least three corners")
    return ring[:, :2]


def draw(outlines: list[Outline], shape: tuple[int, int], downsample: float) -> np.ndarray:
    """The areas as a mask [h, w] bool, in pixels of `downsample` level-0 pixels."""
    mask = np.zeros(shape, np.uint8)
    for outline in outlines:
        # Pixel centres lie at whole numbers in OpenCV, half a pixel off.
        rings = [np.rint((ring / downsample - 0.5) * 2**_FRACTION_BITS).astype(np.int32) for ring in outline.rings]
        one = np.zeros_like(mask)
        cv2.fillPoly(one, rings, 1, shift=_FRACTION_BITS)
        mask |= one
    return mask.astype(bool)


def by_name(outlines: list[Outline]) -> dict[str, list[Outline]]:
    """The areas of each class, the classes in alphabetical order."""
    return {name: [area for area in outlines if area.name == name] for name in sorted({area.name for area in outlines})}
