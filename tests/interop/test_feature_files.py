"""What a feature file may hold, and what is refused: other things than features, and files that claim or point elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from mil_jax.errors import DataError
from mil_jax.interop import array_files, hdf5
from mil_jax.interop.feature_files import count_instances, read_file
from mil_jax.interop.feature_folders import recognise

FEATURES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
PLACES = np.stack([np.arange(7) * 256, np.full(7, 512)], 1)


def write(path, content):
    """content: an array, or arrays by name, in the format of the extension."""
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in content.items():
                file[name] = array
    else:
        import torch

        def tensors(value):
            if isinstance(value, dict):
                return {name: tensors(one) for name, one in value.items()}
            return torch.tensor(value) if isinstance(value, np.ndarray) else value

        torch.save(tensors(content), path)
    return path


@pytest.fixture(params=["npz", "h5", "pt"])
def kind(request):
    if request.param == "pt":
        pytest.importorskip("torch")
    return request.param


@pytest.mark.parametrize(
    "content",
    [
        {"features": FEATURES, "coords": PLACES},
        {"anything": FEATURES},
        {"embedding": FEATURES, "label": np.array(1)},
        {"patch_features": FEATURES, "coords": PLACES},
        {"features": FEATURES[None]},
        {"features": FEATURES[:, None]},
        {"features": FEATURES[:, None, None]},
        {"features": FEATURES[:, :, None, None]},
    ],
)
def test_features_are_found(tmp_path, kind, content):
    path = write(tmp_path / f"s.{kind}", content)
    found = read_file(path)
    np.testing.assert_array_equal(found.features, FEATURES)
    assert count_instances(path) == 7
    assert (found.coords is not None) == ("coords" in content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"coords": PLACES}, "`coords`, and no features"),
        ({"Labels": np.ones(7)}, "`Labels`, and no features"),
        ({"anything": PLACES}, "whole numbers .*as coordinates are, and no features"),
        ({"anything": np.zeros((7, 4), np.int32)}, "whole numbers .*as coordinates are"),
        ({"a": FEATURES, "b": FEATURES}, "holds none of the arrays features"),
        ({"features": np.zeros((7, 0), np.float32)}, "no columns"),
        ({"features": np.array(1, np.float32)}, "features must be .instances, D."),
        ({"features": np.ones((7, 5), bool)}, "features must be numbers"),
        ({"features": FEATURES, "coords": np.zeros((7, 3))}, "coordinates must be numbers .instances, 2."),
        ({"bag_index": np.zeros(7), "features": FEATURES}, "many bags in one file"),
    ],
)
def test_what_is_no_features_is_refused(tmp_path, kind, content, said):
    path = write(tmp_path / f"s.{kind}", content)
    with pytest.raises(DataError, match=rf"s\.{kind}: .*{said}"):
        read_file(path)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_coordinates_without_a_name_are_refused(tmp_path, dtype):
    with pytest.raises(DataError, match="as coordinates are, and no features"):
        read_file(write(tmp_path / "s.npy", PLACES.astype(dtype)))
    two_wide = FEATURES[:, :2]
    np.testing.assert_array_equal(read_file(write(tmp_path / "s.npy", two_wide)).features, two_wide)


def test_features_in_groups_are_found_with_their_coordinates(tmp_path):
    path = write(tmp_path / "s.h5", {"20x/features": FEATURES, "20x/coords": PLACES, "coords": PLACES + 1})
    found = read_file(path)
    np.testing.assert_array_equal(found.features, FEATURES)
    np.testing.assert_array_equal(found.coords, PLACES)
    np.testing.assert_array_equal(read_file(write(tmp_path / "t.h5", {"features/uni": FEATURES})).features, FEATURES)
    with pytest.raises(DataError, match=r"features of several kinds .*20x/features"):
        read_file(write(tmp_path / "s.h5", {"20x/features": FEATURES, "5x/features": FEATURES}))


def test_the_order_of_bytes_is_no_other_type(tmp_path):
    for name in ("s.npy", "s.h5"):
        content = FEATURES.astype(">f4")
        features = read_file(write(tmp_path / name, content if name == "s.npy" else {"features": content})).features
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, FEATURES)


def test_tensors_of_every_kind(tmp_path):
    torch = pytest.importorskip("torch")

    def said(content):
        torch.save(content, tmp_path / "s.pt")
        return read_file(tmp_path / "s.pt").features

    tensor = torch.tensor(FEATURES)
    np.testing.assert_array_equal(said({"uni": {"features": tensor, "coords": torch.zeros(7, 2)}}), FEATURES)
    np.testing.assert_array_equal(said(list(tensor)), FEATURES)
    np.testing.assert_array_equal(said(tensor.T.contiguous().T), FEATURES)
    np.testing.assert_array_equal(said(torch.nn.Parameter(tensor)), FEATURES)
    assert said(tensor.to(torch.float8_e4m3fn)).dtype == np.float32
    assert said(tensor.bfloat16()).dtype == np.float32
    for content in (
        tensor.to_sparse(),
        tensor.to(torch.complex64),
        (tensor, tensor),
        [tensor, 1],
        [tensor[0], tensor[0, :2]],
        {"features": "s.svs"},
        {},
        torch.zeros(1).expand(10**9, 10),
        torch.empty(3, 4, device="meta"),
    ):
        with pytest.raises(DataError, match=r"s\.pt: "):
            said(content)


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "s.npy", FEATURES)
    content = (tmp_path / "s.npy").read_bytes().replace(b"(7, 5), }    ", b"(7, 50000000)}")
    (tmp_path / "s.npy").write_bytes(content)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", (10**12, 1024), np.float32, chunks=(64, 1024))
    with (
        zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 18, 10)})
        file.write(bytes(10 << 20))
    monkeypatch.setattr(array_files, "_FREE_BYTES", 1 << 20)
    for name in ("s.npy", "s.h5", "s.npz"):
        with pytest.raises(DataError, match=rf"{name}: .*claim"):
            read_file(tmp_path / name)


def test_what_lies_outside_a_file_is_not_read(tmp_path):
    (tmp_path / "secret.bin").write_bytes(FEATURES.tobytes())
    write(tmp_path / "other.h5", {"x": FEATURES})
    path = tmp_path / "s.h5"
    layout = h5py.VirtualLayout(FEATURES.shape, FEATURES.dtype)
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", FEATURES.shape)

    def link(file):
        file["features"] = h5py.ExternalLink("other.h5", "x")

    def deep_link(file):
        file["features"] = FEATURES
        file["group/coords"] = h5py.ExternalLink("other.h5", "x")

    def storage(file):
        external = [(str(tmp_path / "secret.bin"), 0, FEATURES.nbytes)]
        file.create_dataset("features", FEATURES.shape, FEATURES.dtype, external=external)

    for make in (link, deep_link, storage, lambda file: file.create_virtual_dataset("features", layout)):
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(DataError, match=r"s\.h5: .*(lies in|is a link to) another file"):
            read_file(path)


def test_a_soft_link_and_a_circle_of_groups_are_followed_within_the_file(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["group/stored"] = FEATURES
        file["features"] = h5py.SoftLink("/group/stored")
        file["broken"] = h5py.SoftLink("/nowhere")
        file["group/up"] = file["/"]
    np.testing.assert_array_equal(read_file(tmp_path / "s.h5").features, FEATURES)


def test_a_file_that_keeps_the_library_busy_or_crashes_it_is_a_sentence(tmp_path):
    path = write(tmp_path / "s.h5", {"features": FEATURES})
    for number, said in ((signal.SIGXCPU, "reading it does not end"), (signal.SIGSEGV, "crashes the HDF5 library")):
        read_file(path)
        (process,) = hdf5._running
        os.kill(process.process.pid, signal.SIGSTOP)
        ending = threading.Timer(0.2, os.kill, (process.process.pid, number))
        ending.start()
        threading.Timer(0.3, os.kill, (process.process.pid, signal.SIGCONT)).start()
        with pytest.raises(DataError, match=said):
            read_file(path)
    np.testing.assert_array_equal(read_file(path).features, FEATURES)  # by a new process


def test_the_other_process_ends_with_this_one_and_a_fork_has_its_own(tmp_path):
    path = write(tmp_path / "s.h5", {"features": FEATURES})
    script = (
        "import os, pathlib, sys; from mil_jax.interop import hdf5; p = pathlib.Path(sys.argv[1]); hdf5.describe(p)\n"
        "child = os.fork()\n"
        "if not child: hdf5.describe(p); os._exit(0)\n"
        "os.waitpid(child, 0); hdf5.describe(p); print(hdf5._running[0].process.pid); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while Path(f"/proc/{int(ended.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{int(ended.stdout)}").exists()


@pytest.mark.parametrize("encrypted", [False, True])
def test_archives_of_other_things_are_refused(tmp_path, encrypted):
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy" if encrypted else "readme.txt", b"no array")
    if encrypted:
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match="it is encrypted" if encrypted else "only nothing"):
        read_file(path)


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "s.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "s.npz", features=np.array([{"a": 1}], object))
    for name in ("s.npy", "s.npz"):
        with pytest.raises(DataError, match="pickled objects"):
            read_file(tmp_path / name)


def test_folders_of_folders_are_read_on_request(tmp_path):
    for place, slide in (("LUAD", "a"), ("LUSC", "b"), ("LUSC/more", "c")):
        (tmp_path / place).mkdir(exist_ok=True)
        np.save(tmp_path / place / f"{slide}.npy", FEATURES)
    with pytest.raises(DataError, match=r"2 folders of features \(LUAD, LUSC\).*data.recursive=true"):
        recognise(tmp_path)
    layout = recognise(tmp_path, recursive=True)
    assert [file.slide_id for file in layout.files] == ["a", "b", "c"]
    assert layout.sentence == f"plain: 3 slides in 3 folders below {tmp_path}"
    np.testing.assert_array_equal(layout.read(layout.files[2]).features, FEATURES)
    np.save(tmp_path / "LUAD" / "c.npy", FEATURES)
    with pytest.raises(DataError, match=r"LUAD/c\.npy and .*LUSC/more/c\.npy are both features of c"):
        recognise(tmp_path, recursive=True)


def test_slides_given_as_features_are_named(tmp_path):
    for name in ("a.vsi", "b.SVS", "c.svs", "d.ome.zarr"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"holds slides .*2 .svs.* and no features; extract them first"):
        recognise(tmp_path)
