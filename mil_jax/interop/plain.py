"""Plain folders: one `.npy`, `.npz`, `.h5` or `.pt` file per slide, features alone or with `coords`.

Coordinates without a unit are taken as level-0 pixels. They may also lie beside the features: slideflow's
`<slide>.index.npz`, or torchmil's sibling folders `features/` and `coords/`. A tensor may be [N, D], [1, N, D], [D]
or images [N, H, W, C].
"""

from __future__ import annotations

from pathlib import Path

from mil_jax.interop.feature_files import (
    FeatureFile,
    Layout,
    counted,
    feature_files,
    read_coords,
    read_file,
    slide_files,
    whole_coords,
)
from mil_jax.interop.slide_bag import UNKNOWN, Provenance, SlideBag

_SLIDEFLOW_INDEX = ".index.npz"


def find(folder: Path) -> Layout | None:
    """The layout of a folder of feature files, or of its subfolder `features`; None where there are none."""
    home = folder
    paths = _paths(home)
    if not paths and (folder / "features").is_dir():
        home = folder / "features"
        paths = _paths(home)
    if not paths:
        return None

    def beside(slide: str) -> list[Path]:
        sibling = home.parent / "coords"
        places = [home / f"{slide}{_SLIDEFLOW_INDEX}"]
        if home.name == "features":
            places += [sibling / f"{slide}{extension}" for extension in (".npy", ".h5")]
        return places

    kinds = " and ".join(sorted({path.suffix for path in paths}))
    files = slide_files(paths, beside)
    return Layout(
        "plain", folder, f"plain folder: {counted(len(files), 'slide')} as {kinds} files in {home}", files, read
    )


def read(file: FeatureFile) -> SlideBag:
    """Reads one slide."""
    content = read_file(file.path)
    coords = content.coords
    if coords is None and file.beside:
        coords = read_coords(file.beside[0])[0]
    encoder = content.attributes.get("encoder", content.attributes.get("extractor", UNKNOWN))
    return SlideBag(
        file.slide_id,
        content.features,
        None if coords is None else whole_coords(coords, file.path),
        Provenance(coordinate_unit="none" if coords is None else "level0_pixels", encoder=str(encoder)),
        str(file.path),
        file.path.stat().st_mtime,
        content.part_mask,
    )


def _paths(folder: Path) -> list[Path]:
    return [path for path in feature_files(folder) if not path.name.endswith(_SLIDEFLOW_INDEX)]
