"""Reading tiles: from the chosen pyramid level, resampled where no level has the scale, by several threads at once.

OpenSlide decodes without holding Python's lock, so threads of one process read side by side, and in the order that was asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import openslide
from PIL import Image

from data_prep.slides.open_slide import opaque, rgb
from data_prep.tiles.grid import Tiling


def read_tile(slide: openslide.OpenSlide, tiling: Tiling, x: int, y: int) -> np.ndarray:
    """The tile with its upper left corner at the level-0 pixel (x, y), [tile, tile, 3] uint8."""
    size = tiling.read_size
    if not tiling.resampled:
        return rgb(slide.read_region((x, y), tiling.level, (size, size)))
    # The tile's edge need not be a whole number of the level's pixels: it is cut out to a fraction of a pixel.
    exact = tiling.edge / tiling.downsample
    size = int(np.ceil(exact))
    picture = opaque(slide.read_region((x, y), tiling.level, (size, size)))
    return np.asarray(picture.resize((tiling.tile, tiling.tile), Image.Resampling.BILINEAR, box=(0, 0, exact, exact)))


def read_tiles(
    slide: openslide.OpenSlide,
    tiling: Tiling,
    coords: np.ndarray,
    threads: int = 1,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Generator[np.ndarray]:
    """The tiles at `coords` [n, 2] in their order, each after `change`; at most 4 per thread are read ahead. To be closed before the slide
    is where not all are taken: OpenSlide aborts the process when a slide that is being read is closed.

    Raises openslide.OpenSlideError for a damaged slide.
    """

    def read(x: int, y: int) -> np.ndarray:
        return change(read_tile(slide, tiling, x, y))

    places = iter(np.asarray(coords).tolist())
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[np.ndarray]] = deque()
        try:
            for x, y in places:
                ahead.append(pool.submit(read, x, y))
                if len(ahead) >= 4 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
