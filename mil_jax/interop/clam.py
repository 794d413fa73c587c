"""CLAM's feature folders: `h5_files/<slide>.h5` and `pt_files/<slide>.pt` (github.com/mahmoodlab/CLAM).

Feature files carry no attributes; the edge of a tile in level-0 pixels, patch_size * downsample, is an attribute of
the coordinates in `patches/<slide>.h5` of the results folder. `h5_files` is preferred because it holds coordinates;
for `pt_files` they come from `patches`.
"""

from __future__ import annotations

import math
from pathlib import Path

from mil_jax.interop.feature_files import (
    FeatureFile,
    Layout,
    counted,
    feature_files,
    number,
    probe_h5,
    read_coords,
    read_file,
    slide_files,
    whole_coords,
)
from mil_jax.interop.slide_bag import Provenance, SlideBag

KINDS = ("h5_files", "pt_files")


def find(folder: Path) -> Layout | None:
    """The layout of a folder that is, or holds, `h5_files` or `pt_files`; None where it is not CLAM's."""
    home = folder.parent if folder.name in KINDS else folder
    kinds = [folder.name] if folder.name in KINDS else [kind for kind in KINDS if (folder / kind).is_dir()]
    found = {kind: feature_files(home / kind) for kind in kinds}
    kind = next((kind for kind in kinds if found[kind]), None)
    if kind is None:
        return None
    patches = next((p for p in (home / "patches", home.parent / "patches") if p.is_dir()), None)
    files = slide_files(found[kind], lambda slide: [patches / f"{slide}.h5"] if patches else [])
    sentence = f"CLAM: {counted(len(files), 'slide')} in {home / kind}, "
    sentence += f"tile sizes from {patches}" if patches else "tile size unknown (no `patches` folder beside them)"
    other = {file.slide_id for file in slide_files(found.get("pt_files", []), lambda _: [])}
    if left := other - {file.slide_id for file in files}:
        sentence += f"; {counted(len(left), 'slide')} in pt_files only, left out"
    return Layout("CLAM", folder, sentence, files, read)


def read(file: FeatureFile) -> SlideBag:
    """Reads one slide. Raises DataError where features and coordinates differ in number."""
    content = read_file(file.path)
    coords, attributes = content.coords, content.attributes
    if file.beside:
        if coords is None:
            coords, attributes = read_coords(file.beside[0])
        else:
            attributes = probe_h5(file.beside[0])[1]
    tile_size = math.nan
    if "patch_size" in attributes:
        downsample = number(attributes, "downsample", file.path) if "downsample" in attributes else 1.0
        tile_size = number(attributes, "patch_size", file.path) * downsample
    return SlideBag(
        file.slide_id,
        content.features,
        None if coords is None else whole_coords(coords, file.path),
        Provenance(tile_size, coordinate_unit="none" if coords is None else "level0_pixels"),
        str(file.path),
        file.path.stat().st_mtime,
        content.part_mask,
    )
