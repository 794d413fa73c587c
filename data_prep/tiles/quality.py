"""How usable a tile is: sharpness, ink, glass, folds. Heuristics on colours and edges, not a trained model.

sharpness: variance of the Laplacian of the brightness (Pech-Pacheco et al. 2000), in grey levels squared; out of focus it falls by
an order of magnitude, but flat stroma is low, too. The others are shares of the tile's pixels: `pen`, blue, green or black ink
(red ink is not told from blood); `glass`, bright and without colour; `fold`, dark and strongly coloured over an area larger than a
nucleus. All are measured on the tile at the scale it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

MEASURES = ("sharpness", "pen", "glass", "fold")
_GREEN, _BLUE = (35, 88), (88, 124)  # hues in degrees / 2; haematoxylin begins at about 125
_NUCLEUS = 8.0  # pixels: deviation of the blur that makes nuclei vanish and leaves folds


def measure(tile: np.ndarray) -> tuple[float, float, float, float]:
    """MEASURES of a tile [t, t, 3] uint8."""
    hue, saturation, value = cv2.split(cv2.cvtColor(tile, cv2.COLOR_RGB2HSV))
    sharpness = cv2.Laplacian(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()
    green = (hue >= _GREEN[0]) & (hue < _GREEN[1]) & (saturation > 40) & (value < 230)
    blue = (hue >= _BLUE[0]) & (hue < _BLUE[1]) & (saturation > 90)
    black = (value < 50) & (saturation < 120)
    glass = (saturation < 15) & (value > 200)
    smooth = cv2.GaussianBlur(tile, (0, 0), _NUCLEUS)
    _, deep, bright = cv2.split(cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV))
    fold = (deep > 125) & (bright < 150)
    return float(sharpness), *(float(part.mean()) for part in (green | blue | black, glass, fold))  # type: ignore[return-value]


def refused(measures: np.ndarray, limits: Mapping[str, float]) -> list[str]:
    """For each row of MEASURES [n, 4] the first limit that it breaks, or "". limits: `min_sharpness`, `max_pen`, ..."""
    words = [""] * len(measures)
    for row, values in enumerate(measures):
        for name, value in zip(MEASURES, values):
            least, most = limits.get(f"min_{name}", -np.inf), limits.get(f"max_{name}", np.inf)
            if not words[row] and not least <= value <= most:
                words[row] = f"{name} {value:.2g}"
    return words
