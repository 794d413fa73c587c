"""Coordinate files that say what no tiling has."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from data_prep.tiles.coordinates import Coordinates, read_coordinates, write_coordinates
from data_prep.tiles.grid import Tiling
from mil_jax.errors import DataError


@pytest.fixture
def path(tmp_path):
    tiling = Tiling(tile=64, edge=64, step=64, level=0, downsample=1.0, mpp=float("nan"))
    coords, tissue = np.arange(20).reshape(10, 2), np.ones(10)
    made = Coordinates("s", tiling, coords, tissue, 0.5, 20.0, (640, 640), (640, 640), 1, 1, parent=np.arange(10))
    write_coordinates(tmp_path / "s.h5", made)
    assert len(read_coordinates(tmp_path / "s.h5").coords) == 10
    return tmp_path / "s.h5"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("coords", np.zeros((10, 3), int)),
        ("coords", np.zeros(20, int)),
        ("coords", np.full((10, 2), np.nan)),
        ("coords", np.full((10, 2), 2**62)),
        ("coords", np.full((10, 2), -1)),
        ("tissue", np.zeros(3)),
        ("parent", np.zeros(3, int)),
        ("labels/tumour", np.zeros(3)),
    ],
)
def test_arrays_that_do_not_belong_to_the_tiles_are_refused(path, name, array):
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs) if name in file else {}
        if name in file:
            del file[name]
        file[name] = array
        file[name].attrs.update(attributes)
    with pytest.raises(DataError, match=r"s\.h5: not a whole coordinate file .*tile this slide again"):
        read_coordinates(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile_size", 0),
        ("tile_size", 10**9),
        ("step_level0", -1),
        ("read_level", -1),
        ("read_downsample", float("nan")),
        ("mpp", float("inf")),
    ],
)
def test_sizes_that_no_tile_has_are_refused(path, name, value):
    with h5py.File(path, "r+") as file:
        file["coords"].attrs[name] = value
    with pytest.raises(DataError, match=r"s\.h5: not a whole coordinate file .*tile this slide again"):
        read_coordinates(path)
