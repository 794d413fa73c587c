"""Opening a slide, its scale, and its overview picture; what OpenSlide cannot read becomes a SlideError.

A slide without micrometres per pixel, or with a value that no scanner has, keeps NaN until a table of the user gives one: nothing
is guessed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from data_prep.jobs import UNREADABLE, Slide, SlideError
from mil_jax.data.cohort.ids import match_ids
from mil_jax.data.cohort.label_table import SLIDE_COLUMNS
from mil_jax.data.tables import is_number, listed, read_columns, read_header, require_column
from mil_jax.errors import DataError

PLAUSIBLE_MPP = (0.05, 20.0)  # micrometres per pixel at level 0: from oil immersion to below a 1x objective
PLAUSIBLE_MAGNIFICATION = (0.5, 200.0)
MOST_ANISOTROPY = 0.02  # between the two axes of a pixel
_MOST_PIXELS_AT_ONCE = 32_000_000
WHITE = 255


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[openslide.OpenSlide]:
    """Yields an open slide. Raises SlideError where it cannot be opened, or read while it is open."""
    try:
        if not Path(path).stat().st_size:
            raise SlideError(UNREADABLE, "the file is empty (0 bytes); copy it again")
        with openslide.OpenSlide(path) as slide:
            yield slide
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(UNREADABLE, "not a slide that OpenSlide knows, or its beginning is damaged") from error
    except openslide.OpenSlideError as error:
        raise SlideError(UNREADABLE, f"damaged or cut short ({error}); copy it again") from error
    except FileNotFoundError as error:
        raise SlideError(UNREADABLE, "there is no such file (any more)") from error
    except PermissionError as error:
        raise SlideError(UNREADABLE, "the file may not be read (permission denied)") from error


@dataclass(frozen=True)
class SlideScale:
    """mpp: micrometres per level-0 pixel. magnification: of the objective. NaN = unknown. why: what is unknown, and why."""

    mpp: float
    magnification: float
    why_no_mpp: str = ""
    why_no_magnification: str = ""


def scale_of(slide: openslide.OpenSlide, mpp: float = math.nan, magnification: float = math.nan) -> SlideScale:
    """The scale that a slide states; mpp, magnification: the user's values, which come before the slide's."""
    no_mpp = no_magnification = ""
    if math.isnan(mpp):
        x = _number(slide, openslide.PROPERTY_NAME_MPP_X)
        y = _number(slide, openslide.PROPERTY_NAME_MPP_Y)
        if math.isnan(x) or math.isnan(y):
            no_mpp = "the slide does not say its micrometres per pixel"
        elif not PLAUSIBLE_MPP[0] <= min(x, y) <= max(x, y) <= PLAUSIBLE_MPP[1]:
            no_mpp = f"the slide says {x:g} micrometres per pixel, which no scanner has"
        elif abs(x - y) > MOST_ANISOTROPY * max(x, y):
            no_mpp = f"its pixels are not square ({x:g} by {y:g} micrometres)"
        else:
            mpp = math.sqrt(x * y)
    if math.isnan(magnification):
        magnification = _number(slide, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        if math.isnan(magnification):
            no_magnification = "the slide does not say its magnification"
        elif not PLAUSIBLE_MAGNIFICATION[0] <= magnification <= PLAUSIBLE_MAGNIFICATION[1]:
            no_magnification = f"the slide says a magnification of {magnification:g}, which no objective has"
            magnification = math.nan
    return SlideScale(mpp, magnification, no_mpp, no_magnification)


def shown_corner(slide: openslide.OpenSlide) -> tuple[float, float]:
    """The corner (x, y), in level-0 pixels, of the part that holds the scanned areas; (0, 0) where that is the whole slide.

    QuPath crops slides to it (MRXS, SCN and others), and counts from there.
    """
    x, y, width, height = (_number(slide, f"openslide.bounds-{name}") for name in ("x", "y", "width", "height"))
    whole = (width, height) == slide.dimensions or any(map(math.isnan, (x, y, width, height)))
    return (0.0, 0.0) if whole else (x, y)


def _number(slide: openslide.OpenSlide, name: str) -> float:
    text = str(slide.properties.get(name, ""))
    return float(text) if is_number(text) else math.nan


def read_overrides(
    path: str, column: str, plausible: tuple[float, float], slides: list[Slide]
) -> tuple[dict[str, float], list[str]]:
    """A table with a column of slides and one of values -> (value by slide id, names that are none of the slides).

    Raises DataError for a value that is no plausible number, for a slide with two values, and where no name is a slide's.
    """
    header = read_header(path)
    named = next((name for name in SLIDE_COLUMNS if name in header), None)
    if named is None:
        raise DataError(
            f"{path}: which column names the slides is not known; call it slide (there are {listed(header)})"
        )
    require_column(column, header, path)
    table = read_columns(path, [named, column]).dropna(subset=[named])
    matches = match_ids([str(name) for name in table[named]], [slide.slide_id for slide in slides])
    values: dict[str, float] = {}
    unknown = []
    for (line, name, text), numbers in zip(table.itertuples(name=None), matches.slides):
        value = float(text) if isinstance(text, str) and is_number(text) else math.nan
        if not plausible[0] <= value <= plausible[1]:
            raise DataError(
                f"{path}, line {line}: {column}={text!r} must be between {plausible[0]:g} and {plausible[1]:g}"
            )
        for number in numbers:
            slide_id = slides[number].slide_id
            if values.setdefault(slide_id, value) != value:
                raise DataError(
                    f"{path}, line {line}: slide {slide_id} has two values, {values[slide_id]:g} and {value:g}"
                )
        if not numbers:
            unknown.append(str(name))
    if not values:
        raise DataError(f"{path}: names none of the slides, but {listed(unknown)}")
    return values, unknown


def opaque(image: Image.Image) -> Image.Image:
    """What `read_region` gives, without its transparency: pixels that the scanner did not scan are white."""
    if _is_opaque(image):
        return image.convert("RGB")
    filled = Image.new("RGB", image.size, (WHITE, WHITE, WHITE))
    filled.paste(image, mask=image.getchannel("A"))
    return filled


def rgb(image: Image.Image) -> np.ndarray:
    """The same as [h, w, 3] uint8."""
    return np.asarray(image)[..., :3] if _is_opaque(image) else np.asarray(opaque(image))


def _is_opaque(image: Image.Image) -> bool:
    return image.mode == "RGB" or image.getchannel("A").getextrema()[0] == WHITE


def overview(slide: openslide.OpenSlide, downsample: float) -> np.ndarray:
    """The whole slide made smaller by `downsample`, [h, w, 3] uint8, h and w rounded up; by area, from the next finer level.

    Slides with one large level are read in bands, so memory stays bounded.
    """
    width, height = (math.ceil(side / downsample - 1e-6) for side in slide.dimensions)
    level = slide.get_best_level_for_downsample(downsample * 1.001)
    columns, rows = slide.level_dimensions[level]
    per_row = rows / height
    band = max(1, int(_MOST_PIXELS_AT_ONCE / columns / per_row))  # rows of the result at a time
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, band):
        bottom = min(top + band, height)
        first, last = math.floor(top * per_row), min(math.ceil(bottom * per_row), rows)
        y = round(first * slide.dimensions[1] / rows)
        part = opaque(slide.read_region((0, y), level, (columns, last - first)))
        box = (0.0, top * per_row - first, float(columns), min(bottom * per_row, rows) - first)
        picture[top:bottom] = np.asarray(part.resize((width, bottom - top), Image.Resampling.BOX, box=box))
    return picture
