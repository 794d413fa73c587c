"""Which pipeline wrote a folder of features: CLAM, TRIDENT, STAMP, or nobody in particular (plain files).

Each layout's own module knows its names and attributes; here they are tried in turn, the most telling first. A folder
that holds nothing but one subfolder of features (STAMP's `<extractor>-<hash>`) stands for that subfolder. Folders of folders (a class
each, or one for each file as GDC writes them) are read on request.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from mil_jax.errors import DataError
from mil_jax.interop import clam, plain, stamp, trident
from mil_jax.interop.feature_files import FeatureFile, Layout, counted, feature_files
from mil_jax.interop.slide_bag import SLIDE_EXTENSIONS


def recognise(folder: str | os.PathLike[str], recursive: bool = False) -> Layout:
    """The layout found in a folder, or, if `recursive`, in it and all folders below. Raises DataError where there is none, or several to
    choose from, and where two files below are of one slide.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder of features")
    try:
        if recursive:
            return _below(root)
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
        names = ", ".join(path.name for path in list(layouts)[:8])
        raise DataError(
            f"{root}: holds {len(layouts)} folders of features ({names}{' and more' if len(layouts) > 8 else ''}); name the one to use, or "
            "read all as one cohort with data.recursive=true (data_prep.shard: --recursive)"
        )
    raise DataError(_nothing(root))


def _below(root: Path) -> Layout:
    """One layout of all folders below that hold feature files."""
    layouts: dict[Path, Layout] = {}
    for place, folders, _ in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if feature_files(Path(place)) and (layout := _find(Path(place))) is not None:
            layouts[Path(place)] = layout
    files = [file for layout in layouts.values() for file in layout.files]
    if not files:
        raise DataError(_nothing(root))
    first: dict[str, FeatureFile] = {}
    for file in files:
        other = first.setdefault(file.slide_id, file)
        if other is not file:
            raise DataError(
                f"{other.path} and {file.path} are both features of {file.slide_id}; remove or rename one of them"
            )
    readers = {file.path: layout.read for layout in layouts.values() for file in layout.files}
    names = " and ".join(sorted({layout.name for layout in layouts.values()}))
    sentence = f"{names}: {counted(len(files), 'slide')} in {counted(len(layouts), 'folder')} below {root}"
    excluded = tuple(one for layout in layouts.values() for one in layout.excluded)
    return Layout(names, root, sentence, tuple(files), lambda file: readers[file.path](file), excluded)


def _raise(error: OSError) -> None:
    raise error


def _nothing(root: Path) -> str:
    """What a folder without features holds instead, as far as that helps."""
    kinds = Counter(path.suffix.lower() for path in root.iterdir() if not path.name.startswith("."))
    slides = {kind: count for kind, count in kinds.items() if kind in SLIDE_EXTENSIONS}
    if slides:
        held = ", ".join(f"{count} {kind}" for kind, count in slides.items())
        return (
            f"{root}: holds slides ({held}) and no features; extract them first (python -m data_prep.tile, then encode)"
        )
    return (
        f"{root}: no features found; expected CLAM's h5_files or pt_files, TRIDENT's features_<encoder>, STAMP's .h5 "
        "files, or .npy, .npz, .h5 or .pt files, one per slide (those of subfolders are read with data.recursive=true)"
    )


def _find(folder: Path) -> Layout | None:
    for module in (clam, trident, stamp, plain):
        layout = module.find(folder)
        if layout is not None:
            return layout
    return None
