"""Folders of shards over time: slides added, everything read again, two magnifications joined, and what `inspect` says."""

from __future__ import annotations

import os
import re
import shutil

import h5py
import numpy as np
import pytest

from data_prep import inspect, shard
from mil_jax.data.shards.reader import Shards
from tests.commands import contents, run

WIDTH = 4


def write(folder, slide, n=10, seed=None, width=WIDTH):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(slide) if seed is None else seed)
    np.savez(
        folder / f"{slide}.npz",
        features=rng.normal(size=(n, width)).astype(np.float32),
        coords=np.stack([np.arange(n), np.arange(n)], axis=1) * 256,
    )


@pytest.fixture
def features(tmp_path):
    for number in range(3):
        write(tmp_path / "features", f"s{number}", 5 + number, number)
    return tmp_path / "features"


def sharded(features, out, capsys, *more, code=0):
    ended = run(shard.main, [f"--features={features}", f"--out={out}", *more], capsys)
    assert ended.code == code, ended.out + ended.err
    return ended


def stored(folder):
    shards = Shards.open(folder)
    found = {}
    for i, slide in enumerate(shards.slide_ids):
        found[slide] = np.empty((shards.num_instances[i], *shards.feature_shape), shards.dtype)
        shards.verify(i)
        shards.read_features(i, found[slide])
    return found


def test_added_slides_come_behind_those_that_are_there_which_stay_in_place(features, tmp_path, capsys):
    out = tmp_path / "shards"
    sharded(features, out, capsys, "--encoder-name=uni_v1")
    (before,) = out.glob("*.tfrecord*")
    first, inode = before.read_bytes(), before.stat().st_ino
    write(features, "s9", 7)
    ended = sharded(features, out, capsys, "--add", "--encoder-name=uni_v1")
    assert "Adding 1 slide to the 3" in ended.out
    old, new = sorted(out.glob("*.tfrecord*"))
    assert (old.read_bytes(), old.stat().st_ino) == (first, inode)
    assert new.name.endswith("00001-of-00002")
    sharded(features, tmp_path / "anew", capsys, "--encoder-name=uni_v1")
    added, anew = stored(out), stored(tmp_path / "anew")
    assert list(added) == ["s0", "s1", "s2", "s9"]
    for slide, rows in anew.items():
        np.testing.assert_array_equal(added[slide], rows)
    assert (out / "feature_report.json").read_bytes() == (tmp_path / "anew" / "feature_report.json").read_bytes()
    assert Shards.open(out).provenance["encoder"].tolist() == ["uni_v1"] * 4
    assert "Nothing to add" in sharded(features, out, capsys, "--add").out
    assert run(shard.main, [f"--out={out}", "--check"], capsys).code == 0


def test_what_changed_or_went_since_is_said_and_stays(features, tmp_path, capsys):
    out = tmp_path / "shards"
    sharded(features, out, capsys)
    before = stored(out)
    (features / "s0.npz").unlink()
    write(features, "s1", 6, 77)
    os.utime(features / "s1.npz", (1, 1))
    ended = sharded(features, out, capsys, "--add")
    assert "features of 1 slide have changed since (s1)" in ended.out
    assert "1 slide in the shards have no features now and stay: s0" in ended.out
    np.testing.assert_array_equal(stored(out)["s1"], before["s1"])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [(["--dtype=float16"], "holds float32, not float16"), (["--neighbors=2"], "neighbors=0, not 2")],
)
def test_slides_that_would_be_stored_otherwise_are_not_added(features, tmp_path, capsys, more, sentence):
    out = tmp_path / "shards"
    sharded(features, out, capsys)
    before = contents(out)
    write(features, "s9")
    assert sentence in sharded(features, out, capsys, "--add", *more, code=2).err
    assert contents(out) == before


def test_a_check_reads_every_byte_and_compares_with_the_features(features, tmp_path, capsys):
    out = tmp_path / "shards"
    assert "whole, finite, and the same as their sources" in sharded(features, out, capsys, "--check").out
    write(features, "s1", 6, 77)
    assert re.search(
        r"slide s1: holds other features than .*s1\.npz", sharded(features, out, capsys, "--check", code=2).err
    )
    (path,) = out.glob("*.tfrecord*")
    damaged, status = bytearray(path.read_bytes()), path.stat()
    damaged[status.st_size // 2] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    ended = run(shard.main, [f"--out={out}", "--check"], capsys)
    assert ended.code == 2
    assert "slide s1): checksum mismatch" in ended.err


def two_scales(tmp_path, parent):
    """Four tiles in two larger ones, as data_prep.encode writes them."""
    corners = np.array([[0, 0], [256, 0], [512, 0], [768, 256]])
    rng = np.random.default_rng(0)
    arrays = {"features": (corners, 256), "features_1": (np.array([[512, 0], [0, 0]]), 512)}
    for name, (coords, size) in arrays.items():
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "s.h5", "w") as file:
            file["features"] = rng.normal(size=(len(coords), 3)).astype(np.float32)
            file["features"].attrs["encoder"] = "uni_v1"
            file["coords"] = coords
            file["coords"].attrs["patch_size_level0"] = size
            if name == "features" and parent:
                file["parent"] = np.array([1, 1, 0, 0], np.int32)
    return tmp_path / "features", tmp_path / "features_1"


@pytest.mark.parametrize("parent", [True, False], ids=["by parents", "by place"])
def test_joined_features_stand_beside_those_of_the_tile_around(tmp_path, capsys, parent):
    high, low = two_scales(tmp_path, parent)
    ended = run(shard.main, [f"--join={high},{low}", f"--out={tmp_path / 'shards'}"], capsys)
    assert ended.code == 0, ended.out + ended.err
    with h5py.File(high / "s.h5") as first, h5py.File(low / "s.h5") as second:
        wanted = np.concatenate([first["features"][()], second["features"][()][[1, 1, 0, 0]]], axis=1)
    np.testing.assert_array_equal(stored(tmp_path / "shards")["s"], wanted)
    assert Shards.open(tmp_path / "shards").provenance["encoder"].tolist() == ["uni_v1+uni_v1"]


def test_folders_without_a_common_slide_are_not_joined(features, tmp_path, capsys):
    shutil.copytree(features, tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    ended = run(shard.main, [f"--join={features},{tmp_path / 'other'}", f"--out={tmp_path / 'shards'}"], capsys)
    assert "have no slide in common" in ended.err
    assert "two folders with a comma" in run(shard.main, ["--join=a", "--out=b"], capsys).err


def test_inspect_says_and_draws_what_a_folder_holds(features, tmp_path, capsys):
    sharded(features, tmp_path / "shards", capsys, "--encoder-name=uni_v1")
    ended = run(inspect.main, [f"--shards={tmp_path / 'shards'}"], capsys)
    assert ended.code == 0, ended.err
    for said in (
        "3 slides, 18 instances of 4 float32",
        "Instances of a slide: 5 to 7, median 6",
        "uni_v1",
        "25.0% of the rows",
    ):
        assert said in ended.out
    assert (tmp_path / "shards-inspect.png").read_bytes().startswith(b"\x89PNG")
    assert "not a folder of shards" in run(inspect.main, [f"--shards={features}"], capsys).err
