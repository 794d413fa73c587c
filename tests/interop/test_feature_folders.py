"""Feature folders of other pipelines: each layout is recognised, named, and read with its coordinates and provenance."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mil_jax.errors import DataError
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.slide_bag import SlideBag, slide_id_of
from tests.skips import needs

D = 6


def features(n: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, D)).astype(dtype)


def grid(n: int, step: float = 512, dtype: str = "int64") -> np.ndarray:
    return (np.stack([np.arange(n) % 3, np.arange(n) // 3], axis=1) * step).astype(dtype)


def write_h5(path: Path, arrays: dict[str, Any], attributes: dict[str, dict[str, Any]] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        for name, values in (attributes or {}).items():
            file[name].attrs.update(values)


def clam(folder: Path) -> None:
    for name, n in (("a.1", 7), ("b", 4)):
        write_h5(folder / "h5_files" / f"{name}.h5", {"features": features(n), "coords": grid(n, dtype="int32")})
        attributes = {"coords": {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0)}}
        write_h5(folder / "patches" / f"{name}.h5", {"coords": grid(n)}, attributes)


def trident(folder: Path) -> None:
    home = folder / "20x_256px_0px_overlap" / "features_uni_v1"
    coords = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    for name, n in (("a.1", 7), ("b", 4)):
        attributes = {"features": {"encoder": "uni_v1", "name": name}, "coords": {**coords, "overlap": 0}}
        write_h5(home / f"{name}.h5", {"features": features(n, "float16"), "coords": grid(n)}, attributes)


def stamp(folder: Path) -> None:
    attributes = {"/": {"stamp_version": "2.4.0", "extractor": "uni2", "unit": "um", "tile_size_um": 256.0}}
    for name, n in (("a.1", 7), ("b", 4)):
        arrays = {"feats": features(n, "float16"), "coords": grid(n, 256, "float32")}
        write_h5(folder / "uni2-3af1" / f"{name}.h5", arrays, attributes)


def plain_npy(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, n in (("a.1", 7), ("b", 4)):
        np.save(folder / f"{name}.npy", features(n))


def plain_npz(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, n in (("a.1", 7), ("b", 4)):
        np.savez(folder / f"{name}.npz", features=features(n), coords=grid(n))


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, float, str, str, str]] = {
    "clam": (clam, "CLAM", 512.0, "level0_pixels", "unknown", "float32"),
    "trident": (trident, "TRIDENT", 512.0, "level0_pixels", "uni_v1", "float16"),
    "stamp": (stamp, "STAMP", 256.0, "um", "uni2", "float16"),
    "npy": (plain_npy, "plain", math.nan, "none", "unknown", "float32"),
    "npz": (plain_npz, "plain", math.nan, "level0_pixels", "unknown", "float32"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_and_read(tmp_path, layout):
    write, name, tile_size, unit, encoder, dtype = LAYOUTS[layout]
    write(tmp_path / "features")
    found = recognise(tmp_path / "features")
    assert found.name == name
    assert "2 slides" in found.sentence
    assert found.sizes() == [7, 4]
    first, second = found.slides()
    assert (first.slide_id, second.slide_id) == ("a.1", "b")
    assert np.array_equal(first.features, features(7, dtype))
    assert first.features.dtype == dtype
    assert first.provenance.coordinate_unit == unit
    assert first.provenance.encoder == encoder
    assert first.provenance.tile_size_level0 == pytest.approx(tile_size, nan_ok=True)
    if unit == "none":
        assert first.coords is None
    else:
        assert first.coords is not None
        assert first.coords.dtype == np.int32
        assert np.array_equal(first.coords, grid(7, 256 if unit == "um" else 512))


def only(folder: Path) -> SlideBag:
    (slide,) = recognise(folder).slides()
    return slide


@pytest.mark.parametrize("name", ["b.c.h5", "b.c.svs.h5", "x/b.c.NPY", "b.c.pt"])
def test_only_known_extensions_are_cut_off(name):
    assert slide_id_of(name) == "b.c"


def test_clam_says_when_slides_are_only_in_pt_files(tmp_path):
    clam(tmp_path)
    (tmp_path / "pt_files").mkdir()
    for name in ("a.1", "b", "c"):
        (tmp_path / "pt_files" / f"{name}.pt").touch()
    assert "1 slide in pt_files only" in recognise(tmp_path).sentence


def test_clam_pt_files_take_their_coordinates_from_patches(tmp_path):
    torch = needs("torch")
    clam(tmp_path)
    (tmp_path / "pt_files").mkdir()
    torch.save(torch.from_numpy(features(7)), tmp_path / "pt_files" / "a.1.pt")
    slide = only(tmp_path / "pt_files")
    assert np.array_equal(slide.features, features(7))
    assert np.array_equal(slide.coords, grid(7))
    assert slide.provenance.tile_size_level0 == 512.0


def test_features_without_their_coordinates_are_refused(tmp_path):
    write_h5(tmp_path / "h5_files" / "a.h5", {"features": features(5), "coords": grid(4)})
    with pytest.raises(DataError, match=r"slide a.*5 rows of features but 4 coordinates"):
        only(tmp_path)


@pytest.mark.parametrize("shape", [(0,), (0, D)])
def test_trident_empty_slides_are_bags_of_no_instances(tmp_path, shape):
    home = tmp_path / "features_uni_v1"
    write_h5(home / "a.h5", {"features": np.zeros(shape, np.float32), "coords": np.zeros((0, 2), np.int64)})
    assert len(only(home).features) == 0
    assert recognise(home).sizes() == [0]


def test_trident_slides_still_being_written_are_left_out(tmp_path):
    trident(tmp_path)
    (tmp_path / "20x_256px_0px_overlap" / "features_uni_v1" / "b.h5.lock").touch()
    layout = recognise(tmp_path)
    assert [file.slide_id for file in layout.files] == ["a.1"]
    assert layout.excluded == (("b", "still being written (.lock file)"),)


def test_trident_none_is_no_encoder_and_older_files_tell_the_tile_size(tmp_path):
    attributes = {
        "features": {"encoder": "None"},
        "coords": {"patch_size": 224, "level0_magnification": 40, "target_magnification": 10, "name": "None"},
    }
    home = tmp_path / "features_conch_v15"
    write_h5(home / "a.h5", {"features": features(3), "coords": grid(3)}, attributes)
    assert only(home).provenance.encoder == "conch_v15"
    assert only(home).provenance.tile_size_level0 == 896.0


def test_trident_job_with_two_encoders_asks_which(tmp_path):
    for encoder in ("uni_v1", "conch_v1"):
        write_h5(tmp_path / "20x_256px_0px_overlap" / f"features_{encoder}" / "a.h5", {"features": features(3)})
    with pytest.raises(DataError, match=r"features_conch_v1.*features_uni_v1.*name the one to use"):
        recognise(tmp_path)


def test_slide_embeddings_are_bags_of_one_instance(tmp_path):
    home = tmp_path / "slide_features_titan"
    write_h5(home / "a.h5", {"features": features(1)[0], "coords": grid(9)})
    slide = only(home)
    assert np.array_equal(slide.features, features(1))
    assert slide.coords is None
    assert slide.provenance.encoder == "titan"


def test_stamp_historic_coordinates_become_micrometres(tmp_path):
    write_h5(tmp_path / "a.h5", {"feats": features(4), "coords": grid(4, 224, "float32")})
    slide = only(tmp_path)
    assert slide.provenance.coordinate_unit == "um"
    assert slide.provenance.tile_size_level0 == 256.0
    assert np.array_equal(slide.coords, grid(4, 256))


def test_stamp_files_of_other_origin_have_no_coordinates(tmp_path):
    write_h5(tmp_path / "a.h5", {"patch_embeddings": features(4)})
    assert recognise(tmp_path).name == "STAMP"
    assert only(tmp_path).coords is None


def test_a_leading_axis_of_one_is_dropped(tmp_path):
    write_h5(tmp_path / "a.h5", {"features": features(4)[None], "coords": grid(4)[None]})
    assert only(tmp_path).features.shape == (4, D)
    assert only(tmp_path).coords.shape == (4, 2)


def test_instance_images_keep_their_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8, 3), np.uint8))
    assert only(tmp_path).features.shape == (1, 8, 8, 3)


def test_slideflow_and_torchmil_coordinates_lie_beside_the_features(tmp_path):
    torchmil, slideflow = tmp_path / "torchmil", tmp_path / "slideflow"
    for folder in (torchmil / "features", torchmil / "coords", slideflow):
        folder.mkdir(parents=True)
    np.save(torchmil / "features" / "a.npy", features(4))
    np.save(torchmil / "coords" / "a.npy", grid(4))
    np.save(slideflow / "a.npy", features(4))
    np.savez(slideflow / "a.index.npz", grid(4))
    assert np.array_equal(only(torchmil).coords, grid(4))
    assert np.array_equal(only(slideflow).coords, grid(4))


@pytest.mark.parametrize("kind", ["tensor", "dict", "numpy", "bfloat16"])
def test_torch_files_are_read_safely(tmp_path, kind):
    torch = needs("torch")
    tensor = torch.from_numpy(np.round(features(5), 1)).bfloat16().float()
    content = {
        "tensor": tensor[None],
        "dict": {"feats": tensor, "coords": torch.from_numpy(grid(5))},
        "numpy": tensor.numpy(),
        "bfloat16": tensor.bfloat16(),
    }[kind]
    torch.save(content, tmp_path / "a.pt")
    assert np.array_equal(only(tmp_path).features, tensor.numpy())
    assert recognise(tmp_path).sizes() == [5]


class Evil:
    def __reduce__(self):
        return (print, ("code in a pickle was run",))


def test_torch_files_with_code_are_refused(tmp_path, capsys):
    torch = needs("torch")
    torch.save(Evil(), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt.*plain tensors"):
        only(tmp_path)
    assert "was run" not in capsys.readouterr().out


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r"pip install 'mil-jax\[torch\]'"):
        only(tmp_path)


@pytest.mark.parametrize("name", ["a.h5", "a.npy", "a.npz", "a.pt"])
def test_an_unreadable_file_is_named(tmp_path, name):
    if name.endswith(".pt"):
        needs("torch")
    (tmp_path / name).write_bytes(b"not what it seems")
    with pytest.raises(DataError, match=name):
        only(tmp_path)


def test_a_whole_data_set_in_one_file_is_not_taken_for_a_slide(tmp_path):
    np.savez(tmp_path / "musk.npz", features=features(5), bag_index=np.zeros(5, int), labels=np.zeros(1))
    with pytest.raises(DataError, match="many bags"):
        only(tmp_path)


def test_pickled_objects_in_numpy_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled"):
        only(tmp_path)


def test_a_folder_without_features_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no features found.*h5_files"):
        recognise(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        recognise(tmp_path / "nowhere")


def test_real_stamp_like_file(shared):
    slide = only(shared / "data" / "mopadi_features")
    assert slide.slide_id == "TCGA-AD-6964-01Z-00-DX1"
    assert slide.features.shape == (777, 512)
    assert slide.provenance.coordinate_unit == "level0_pixels"
    assert np.abs(np.diff(np.unique(slide.coords[:, 0]))).min() == 512


def test_real_slide_embedding(shared):
    slide = only(shared / "data" / "wsisum_demo" / "PRISM")
    assert slide.features.shape == (1, 1280)
    assert slide.coords.tolist() == [[-32, 72512]]


def test_real_file_with_one_row_more_than_coordinates(shared):
    layout = recognise(shared / "data" / "wsisum_demo")
    assert layout.sizes() == [501, 63]
    with pytest.raises(DataError, match="501 rows of features but 500 coordinates"):
        list(layout.slides())
