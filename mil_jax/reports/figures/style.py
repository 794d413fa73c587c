"""What all figures share: colours, axes with few lines, and PNG files that are written whole."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mil_jax.files import atomic_write

# Okabe and Ito's colours, told apart in every kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
GREY = "#9A9A9A"
SELECTED_ON_TEST = " (selected on test)"


def tidy(axes: Axes) -> None:
    """Few lines, and a grid behind them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
