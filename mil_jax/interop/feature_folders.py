"""Which pipeline wrote a folder of features: CLAM, TRIDENT, STAMP, or nobody in particular (plain files).

Each layout's own module knows its names and attributes; here they are tried in turn, the most telling first. A folder
that holds nothing but one subfolder of features (STAMP's `<extractor>-<hash>`) stands for that subfolder.
"""

from __future__ import annotations

import os
from pathlib import Path

from mil_jax.errors import DataError
from mil_jax.interop import clam, plain, stamp, trident
from mil_jax.interop.feature_files import Layout


def recognise(folder: str | os.PathLike[str]) -> Layout:
    """The layout found in a folder. Raises DataError where there is none, or several to choose from."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder of features")
    try:
        layout = _find(root)
        if layout is not None:
            return layout
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        found = {path: _find(path) for path in folders}
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    layouts = {path: layout for path, layout in found.items() if layout is not None}
    if len(layouts) == 1:
        return next(iter(layouts.values()))
    if layouts:
        names = ", ".join(path.name for path in layouts)
        raise DataError(f"{root}: holds {len(layouts)} folders of features ({names}); name the one to use")
    raise DataError(
        f"{root}: no features found; expected CLAM's h5_files or pt_files, TRIDENT's features_<encoder>, STAMP's .h5 "
        "files, or .npy, .npz, .h5 or .pt files, one per slide"
    )


def _find(folder: Path) -> Layout | None:
    for module in (clam, trident, stamp, plain):
        layout = module.find(folder)
        if layout is not None:
            return layout
    return None
