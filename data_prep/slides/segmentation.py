"""Tissue on a slide's overview: saturation, median filter, threshold, closing, holes and area limits.

The steps and the names of the settings are those of CLAM (Lu et al. 2021), so its presets (csv) can be used as they are. What
differs by default: the overview has a fixed physical resolution instead of a pyramid level near 1/64; Otsu's threshold is kept
between two bounds (on a slide full of tissue it would cut the tissue in two); black pixels, whose saturation is noise, count as
background; and a slide that is mostly dark (fluorescence) is segmented by brightness.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import openslide

from data_prep.slides.open_slide import overview
from mil_jax.data.tables import read_columns, read_header, suggestion
from mil_jax.errors import ConfigError

REFERENCE_EDGE = 512  # CLAM's unit of area: a square of 512 level-0 pixels
BLACK = 30  # brightness (0 to 255) below which a pixel has no colour
OTSU_BOUNDS = (8, 25)  # of saturation
_DOWNSAMPLE_OF_UNKNOWN_SCALE = 16.0
_CLAM_DOWNSAMPLE = 64.0
_LONGEST_SIDE = 5000
_CLAM_TRUTH = {"TRUE": True, "FALSE": False}


@dataclass(frozen=True)
class Segmentation:
    """How tissue is found; CLAM's names.

    seg_um: micrometres per pixel of the overview; 0: `seg_level` instead. seg_level: a pyramid level, -1: the one nearest 1/64.
    sthresh: threshold of saturation, of brightness on dark slides. mthresh: edge of the median filter, odd. close: edge of the
    closing's square, 0: none. use_otsu: choose the threshold by Otsu. a_t, a_h: least area of tissue and of holes, in squares of 512
    level-0 pixels. max_n_holes: most holes of one piece of tissue, the largest ones. contour_fn: which tiles are kept: `share` (of
    tissue), or by CLAM's points `four_pt`, `four_pt_hard`, `center`, `basic`.
    """

    seg_um: float = 4.0
    seg_level: int = -1
    sthresh: int = 8
    mthresh: int = 5
    close: int = 5
    use_otsu: bool = True
    a_t: float = 0.25
    a_h: float = 0.25
    max_n_holes: int = 1000
    contour_fn: str = "share"


CONTOUR_FNS = ("share", "four_pt", "four_pt_hard", "center", "basic")
PRESETS = {
    "default": Segmentation(),
    # The presets that come with CLAM.
    "biopsy": Segmentation(0.0, -1, 15, 11, 2, False, 1, 1, 2, "four_pt"),
    "resection": Segmentation(0.0, -1, 15, 11, 4, False, 100, 16, 8, "four_pt"),
    "tcga": Segmentation(0.0, -1, 8, 7, 4, False, 16, 4, 8, "four_pt"),
}
PRESETS |= {f"bwh_{name}": PRESETS[name] for name in ("biopsy", "resection")}
# Columns of CLAM's preset files that have no meaning here: pictures, its own filters of tiles, choices by hand.
_UNUSED = {
    *("vis_level", "line_thickness", "white_thresh", "black_thresh", "use_padding", "keep_ids", "exclude_ids"),
}


def preset(name: str | os.PathLike[str]) -> Segmentation:
    """A preset by name, or from a CLAM preset file (csv with one row). Raises ConfigError where it is neither."""
    text = str(name)
    if text in PRESETS:
        return PRESETS[text]
    if not text.lower().endswith(".csv"):
        raise ConfigError(
            f"--preset={text}: unknown{suggestion(text, PRESETS)}; there are {', '.join(PRESETS)}, or a csv file"
        )
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Segmentation)}
    header = read_header(text)
    if unknown := [column for column in header if column not in {*kinds, *_UNUSED}]:
        raise ConfigError(f"{text}: {unknown[0]!r} is not a setting of the segmentation{suggestion(unknown[0], kinds)}")
    columns = [column for column in header if column in kinds]
    rows = read_columns(text, columns)
    if len(rows) != 1:
        raise ConfigError(f"{text}: a preset has one row of values, this has {len(rows)}")
    values = {column: _read(text, column, rows[column].iloc[0], kinds[column]) for column in columns}
    return checked(dataclasses.replace(Segmentation(seg_um=0.0), **values))


def _read(path: str, column: str, text: object, kind: type) -> Any:
    try:
        return _CLAM_TRUTH[str(text).upper()] if kind is bool else kind(str(text))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: {column}={text!r} is not a value of this setting") from error


def checked(settings: Segmentation) -> Segmentation:
    """The settings. Raises ConfigError for one out of its limits."""
    limits = [
        ("seg_um", settings.seg_um >= 0, "0 or more"),
        ("sthresh", 0 <= settings.sthresh <= 255, "from 0 to 255"),
        ("mthresh", settings.mthresh >= 1 and settings.mthresh % 2 == 1, "odd and at least 1"),
        ("close", settings.close >= 0, "0 or more"),
        ("a_t", settings.a_t >= 0, "0 or more"),
        ("a_h", settings.a_h >= 0, "0 or more"),
        ("max_n_holes", settings.max_n_holes >= 0, "0 or more"),
        ("contour_fn", settings.contour_fn in CONTOUR_FNS, f"one of {', '.join(CONTOUR_FNS)}"),
    ]
    for name, fine, wanted in limits:
        if not fine:
            raise ConfigError(f"{name}={getattr(settings, name)} must be {wanted}")
    return settings


@dataclass(frozen=True)
class Tissue:
    """What was found.

    picture: the overview, [h, w, 3] uint8. mask: [h, w] bool, tissue without holes. downsample: level-0 pixels per pixel of these.
    contours: pieces of tissue as (outline, holes), each [k, 2] int32 in pixels of the overview. dark: the background is dark.
    threshold: of saturation, or of brightness where it is dark.
    """

    picture: np.ndarray
    mask: np.ndarray
    downsample: float
    contours: list[tuple[np.ndarray, list[np.ndarray]]]
    dark: bool
    threshold: int


def segment(slide: openslide.OpenSlide, mpp: float, settings: Segmentation) -> Tissue:
    """Finds the tissue of a slide. mpp: micrometres per level-0 pixel, NaN = unknown."""
    downsample = overview_downsample(slide, mpp, settings)
    return segment_picture(overview(slide, downsample), downsample, settings)


def overview_downsample(slide: openslide.OpenSlide, mpp: float, settings: Segmentation) -> float:
    """Level-0 pixels per pixel of the overview."""
    if settings.seg_um:
        wanted = _DOWNSAMPLE_OF_UNKNOWN_SCALE if math.isnan(mpp) else settings.seg_um / mpp
        return max(1.0, wanted, max(slide.dimensions) / _LONGEST_SIDE)
    level = settings.seg_level if settings.seg_level >= 0 else slide.get_best_level_for_downsample(_CLAM_DOWNSAMPLE)
    return float(slide.level_downsamples[min(level, slide.level_count - 1)])


def segment_picture(picture: np.ndarray, downsample: float, settings: Segmentation) -> Tissue:
    """As `segment`, on an overview [h, w, 3] uint8 of `downsample` level-0 pixels per pixel."""
    brightest = picture.max(axis=-1)
    dark = bool(np.median(brightest) < 2 * BLACK)
    if dark:
        signal = brightest
    else:
        signal = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[..., 1]
        signal[brightest < BLACK] = 0
    signal = cv2.medianBlur(signal, settings.mthresh)
    threshold = settings.sthresh
    if settings.use_otsu:
        threshold = int(cv2.threshold(signal, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0])
        if not dark:
            threshold = int(np.clip(threshold, *OTSU_BOUNDS))
    found = (signal > threshold).astype(np.uint8)
    if settings.close:
        found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((settings.close, settings.close), np.uint8))
    contours = _pieces(found, REFERENCE_EDGE**2 / downsample**2, settings)
    mask = np.zeros(found.shape, np.uint8)
    for outline, holes in contours:
        cv2.drawContours(mask, [outline], -1, 1, cv2.FILLED)
        # A hole's contour runs on the tissue around it, which stays tissue.
        cv2.drawContours(mask, holes, -1, 0, cv2.FILLED)
        cv2.drawContours(mask, holes, -1, 1, 1)
    return Tissue(picture, mask.astype(bool), downsample, contours, dark, threshold)


def restricted(tissue: Tissue, allowed: np.ndarray) -> Tissue:
    """The tissue where `allowed` [h, w] bool is true."""
    mask = tissue.mask & allowed
    everything = Segmentation(a_t=0, a_h=0)
    return dataclasses.replace(tissue, mask=mask, contours=_pieces(mask.astype(np.uint8), 0.0, everything))


def _pieces(found: np.ndarray, unit: float, settings: Segmentation) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Outlines with their holes that pass the limits of area. unit: pixels of one reference square."""
    contours, hierarchy = cv2.findContours(found, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return []
    holes_of: dict[int, list[int]] = {}
    for number, (_, _, _, parent) in enumerate(hierarchy[0]):
        if parent >= 0:
            holes_of.setdefault(parent, []).append(number)
    pieces = []
    for number, (_, _, _, parent) in enumerate(hierarchy[0]):
        if parent >= 0:
            continue
        own = holes_of.get(number, [])
        area = cv2.contourArea(contours[number]) - sum(cv2.contourArea(contours[hole]) for hole in own)
        if area <= 0 or area <= settings.a_t * unit:
            continue
        large = sorted(own, key=lambda hole: -cv2.contourArea(contours[hole]))
        kept = [hole for hole in large[: settings.max_n_holes] if cv2.contourArea(contours[hole]) > settings.a_h * unit]
        pieces.append((contours[number][:, 0], [contours[hole][:, 0] for hole in kept]))
    return pieces
