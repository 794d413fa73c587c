"""Feature files made to mislead: what lies outside of them, what was never written, and content without an end."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest

from mil_jax.errors import DataError
from mil_jax.interop import stamp, trident
from mil_jax.interop.array_files import open_arrays
from mil_jax.interop.feature_files import FeatureFile, read_file
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.torch_checkpoints import load_state_dict

FEATURES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def _virtual(file, name, size, source, source_size=7):
    layout = h5py.VirtualLayout((size, 5), np.float32)
    layout[:source_size] = h5py.VirtualSource(".", source, (source_size, 5), np.float32)
    file.create_virtual_dataset(name, layout)


def _link_below_many_groups(file):
    file.create_group("g/" * 12)["out"] = h5py.ExternalLink("other.h5", "features")
    file["features"] = h5py.SoftLink("g/" * 12 + "out")


def _virtual_of_external(file):
    file.create_dataset("inner", (7, 5), np.float32, external=[(str(file.filename), 0, 140)])
    _virtual(file, "features", 7, "inner")


def _circle(file):
    _virtual(file, "features", 7, "other")
    _virtual(file, "other", 7, "features")


def _partly_virtual(file):
    file["inner"] = FEATURES
    _virtual(file, "features", 10**9, "inner")


def _more_than_the_source(file):
    file["inner"] = FEATURES
    layout = h5py.VirtualLayout((12, 5), np.float32)
    layout[:] = h5py.VirtualSource(".", "inner", (14, 5), np.float32)[2:14]
    file.create_virtual_dataset("features", layout)


def _chunks_never_written(file):
    file.create_dataset("features", (700, 5), np.float32, chunks=(7, 5))[:7] = FEATURES


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_link_below_many_groups, "out is a link to another file"),
        (_virtual_of_external, "inner lies in another file"),
        (lambda file: _virtual(file, "features", 7, "absent"), "put together from absent, which is no array of this"),
        (_circle, "put together from other, which is no array of this file"),
        (_partly_virtual, r"claims the shape \(1000000000, 5\), and its parts are 35 numbers"),
        (_more_than_the_source, "put together from more than inner holds"),
        (_chunks_never_written, "1 of its 100 chunks were ever written"),
    ],
)
def test_hdf5_arrays_that_lie_elsewhere_or_nowhere(tmp_path, make, said):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = FEATURES
    with h5py.File(tmp_path / "s.h5", "w") as file:
        make(file)
    with pytest.raises(DataError, match=rf"s\.h5: cannot be read as HDF5 .*{said}"):
        read_file(tmp_path / "s.h5")


def test_hdf5_arrays_put_together_from_others_of_the_file_are_read(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["inner"] = FEATURES
        _virtual(file, "features", 7, "inner")
        h5py.h5d.create(file.id, b"when", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))  # NumPy has no such type
    np.testing.assert_array_equal(read_file(tmp_path / "s.h5").features, FEATURES)


def test_groups_that_hold_one_another_are_each_looked_through_once(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        groups = [file.create_group(f"g{number}") for number in range(12)]
        for group in groups:
            for other in groups:
                group[other.name.strip("/")] = other
        file["features"] = FEATURES
    np.testing.assert_array_equal(read_file(tmp_path / "s.h5").features, FEATURES)
    assert list(open_arrays(tmp_path / "s.h5").headers) == ["features"]


def _header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", ["(-1, 5)", f"(0, {10**30})", "(" * 200 + "7" + ")" * 200])
def test_shapes_that_no_array_has(tmp_path, shape):
    (tmp_path / "s.npy").write_bytes(_header(shape) + FEATURES.tobytes())
    with pytest.raises(DataError, match=r"s\.npy: cannot be read as arrays of numbers") as caught:
        read_file(tmp_path / "s.npy")
    assert len(str(caught.value)) < 500


def test_an_archive_is_read_by_its_arrays_whatever_else_is_named_like_them(tmp_path):
    np.savez(tmp_path / "s.npz", features=FEATURES)
    with zipfile.ZipFile(tmp_path / "s.npz", "a") as archive:
        archive.writestr("features", b"no array")
    np.testing.assert_array_equal(read_file(tmp_path / "s.npz").features, FEATURES)


def test_a_damaged_lzma_archive_is_a_sentence(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_LZMA) as archive,
        archive.open("features.npy", "w") as file,
    ):
        np.save(file, FEATURES)
    content = bytearray((tmp_path / "s.npz").read_bytes())
    content[60:160] = b"\xff" * 100
    (tmp_path / "s.npz").write_bytes(content)
    for read in (read_file, load_state_dict):
        with pytest.raises(DataError, match=r"s\.npz: cannot be read as arrays of numbers"):
            read(tmp_path / "s.npz")


class TestTorch:
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path):
        self.torch = pytest.importorskip("torch")
        self.path = tmp_path / "s.pt"

    def said(self, content):
        self.torch.save(content, self.path)
        return read_file(self.path).features

    def test_dictionaries_that_hold_themselves_or_one_another(self):
        circle = {"features": self.torch.tensor(FEATURES)}
        circle["again"] = circle
        np.testing.assert_array_equal(self.said(circle), FEATURES)
        twice = {"features": self.torch.tensor(FEATURES)}
        for _ in range(64):
            twice = {"a": twice, "b": twice}
        np.testing.assert_array_equal(self.said(twice), FEATURES)

    def test_dictionaries_without_an_end(self):
        self.torch.save({}, self.path)
        with zipfile.ZipFile(self.path) as source:
            members = {name: source.read(name) for name in source.namelist()}
        nested = pickle.PROTO + b"\2" + b"}X\1\0\0\0k" * 50_000 + b"}" + b"s" * 50_000 + pickle.STOP
        with zipfile.ZipFile(self.path, "w") as target:
            for name, content in members.items():
                target.writestr(name, nested if name.endswith("data.pkl") else content)
        with pytest.raises(DataError, match=r"s\.pt: holds more than 10,000 tensors and dictionaries"):
            read_file(self.path)

    def test_compressed_files_are_unpacked_not_mapped(self):
        """PyTorch would map the compressed bytes as numbers."""
        self.torch.save({"features": self.torch.tensor(FEATURES)}, self.path)
        with zipfile.ZipFile(self.path) as source:
            members = {name: source.read(name) for name in source.namelist()}
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as target:
            for name, content in members.items():
                target.writestr(name, content)
        np.testing.assert_array_equal(read_file(self.path).features, FEATURES)
        np.testing.assert_array_equal(load_state_dict(self.path)["features"], FEATURES)

    def test_small_files_of_much_memory(self):
        class Huge:
            def __reduce__(self):
                return np._core.multiarray._reconstruct, (np.ndarray, (10**10,), b"b")

        for content in ({"features": Huge()}, [self.torch.zeros(1).expand(10**6) for _ in range(3000)]):
            with pytest.raises(DataError, match=r"s\.pt: its .* bytes claim to hold "):
                self.said(content)

    def test_nested_and_quantized_tensors_and_objects(self):
        nested = self.torch.nested.nested_tensor([self.torch.ones(3, 5), self.torch.ones(2, 5)])
        quantized = self.torch.quantize_per_tensor(self.torch.ones(3, 5), 0.1, 0, self.torch.quint8)
        for content, said in (
            (nested, "it holds a nested tensor"),
            (quantized, "quint8"),
            (self.torch.nn.Linear(3, 4), r"it holds torch.nn.modules.linear.Linear; objects are not loaded"),
            ({"features": np.array(["a"])}, r"it holds numpy.dtypes.StrDType; objects are not loaded"),
        ):
            with pytest.raises(DataError, match=rf"s\.pt: cannot be read .*{said}"):
                self.said(content)

    @pytest.mark.parametrize("kind", ["sparse", "nested"])
    def test_checkpoints_of_such_tensors(self, kind):
        one = self.torch.ones(3, 5)
        self.torch.save(
            {"w": one.to_sparse() if kind == "sparse" else self.torch.nested.nested_tensor([one])}, self.path
        )
        with pytest.raises(DataError, match=r"s\.pt: cannot be read as a PyTorch checkpoint \(w is "):
            load_state_dict(self.path)


def test_arrays_of_safetensors_that_share_their_bytes_are_refused(tmp_path):
    entry = '{"dtype": "U8", "shape": [4000], "data_offsets": [0, 4000]}'
    text = ("{" + ", ".join(f'"w{number}": {entry}' for number in range(3)) + "}").encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4000))
    with pytest.raises(DataError, match="its arrays overlap"):
        load_state_dict(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(DataError, match="cannot be read as a safetensors file"):
        load_state_dict(tmp_path / "w.safetensors")


def test_attributes_of_several_values(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        dataset = file.create_dataset("features", data=FEATURES)
        dataset.attrs.update({"level0_magnification": np.array([40.0, 20.0]), "encoder": np.array([b"uni", b"x"])})
    provenance = trident.read(FeatureFile(tmp_path / "s.h5", "s")).provenance
    assert (provenance.mpp_level0, provenance.encoder) == (0.25, "uni")


def test_coordinates_that_are_not_finite_are_refused_before_steps_are_taken_from_them(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["feats"], file["coords"] = FEATURES, np.full((7, 2), np.nan)
    with pytest.raises(DataError, match="coordinates must be finite"):
        stamp.read(FeatureFile(tmp_path / "s.h5", "s"))


def test_a_link_to_nothing_is_a_slide_that_is_missing(tmp_path):
    np.save(tmp_path / "a.npy", FEATURES)
    (tmp_path / "b.npy").symlink_to(tmp_path / "gone.npy")
    with pytest.raises(DataError, match=r"b\.npy: a link to .*gone\.npy, which is not there"):
        recognise(tmp_path)


def test_a_folder_below_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", FEATURES)
    (tmp_path / "shut").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"shut: cannot be read \(Permission denied\)"):
        recognise(tmp_path, recursive=True)
