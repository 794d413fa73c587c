"""Features to shards: once into a cache, again only when a file or a setting changed."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from mil_jax.data.shards import convert as module
from mil_jax.data.shards.convert import shards_for_features
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import DataError, ShardError, UserError


@pytest.fixture
def features(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for k in range(3):
        np.save(folder / f"s{k}.npy", np.random.default_rng(k).normal(size=(10 + k, 4)).astype(np.float32))
    return folder


def test_unchanged_files_are_converted_once(features, tmp_path):
    first = shards_for_features(features, tmp_path / "cache")
    seen = []
    second = shards_for_features(features, tmp_path / "cache", progress=lambda *step: seen.append(step))
    assert second.folder == first.folder
    assert second.slide_ids == ["s0", "s1", "s2"]
    assert not seen


def test_a_changed_file_gets_a_new_name(features, tmp_path):
    first = shards_for_features(features, tmp_path / "cache")
    np.save(features / "s1.npy", np.ones((11, 4), np.float32))
    os.utime(features / "s1.npy", ns=(0, 0))
    second = shards_for_features(features, tmp_path / "cache")
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint
    assert Shards.open(first.folder).fingerprint == first.fingerprint


def keep_times(path, write):
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("rows", [10, 40_000])
def test_other_features_of_the_same_size_and_time_are_converted_anew(features, tmp_path, rows):
    """As `cp -p` and `rsync -t` leave them; of the longer file a single row differs, which no sample holds."""
    path = features / "s0.npy"
    content = np.zeros((rows, 4), np.float32)
    np.save(path, content)
    first = shards_for_features(features, tmp_path / "cache").fingerprint
    content[rows // 3] = 1
    keep_times(path, lambda path: np.save(path, content))
    second = shards_for_features(features, tmp_path / "cache")
    out = np.empty((rows, 4), np.float32)
    second.read_features(0, out)
    np.testing.assert_array_equal(out, content)
    assert second.fingerprint != first


def test_a_moved_folder_with_the_same_sizes_and_times_is_converted_anew(features, tmp_path):
    first = shards_for_features(features, tmp_path / "cache").fingerprint
    other = tmp_path / "other"
    shutil.copytree(features, other)
    for path in other.iterdir():
        keep_times(path, lambda path: np.save(path, np.load(path) + 1))
    features.rename(tmp_path / "before")
    other.rename(features)
    assert shards_for_features(features, tmp_path / "cache").fingerprint != first


def test_files_whose_status_alone_changed_are_read_once_and_not_converted(features, tmp_path, monkeypatch):
    first = shards_for_features(features, tmp_path / "cache")
    sources = first.folder / "sources.json"
    read = []
    monkeypatch.setattr(module, "_checksum", lambda path, whole=module._checksum: read.append(path.name) or whole(path))
    monkeypatch.setattr(module, "convert", lambda *_, **__: pytest.fail("converted again"))
    os.utime(sources, ns=(0, 0))  # as if the files had been changed later
    assert shards_for_features(features, tmp_path / "cache").fingerprint == first.fingerprint
    assert sorted(read) == ["s0.npy", "s1.npy", "s2.npy"]
    monkeypatch.setattr(module, "_TOLERANCE", -(10**9))  # a second has passed
    shards_for_features(features, tmp_path / "cache")
    assert len(read) == 3
    os.utime(sources, ns=(0, 0))

    def forbidden(*_):
        raise UserError("cannot be written")

    monkeypatch.setattr(module, "write_text", forbidden)  # a cache that may only be read
    assert shards_for_features(features, tmp_path / "cache").fingerprint == first.fingerprint
    assert len(read) == 3 + 3


@pytest.mark.parametrize("content", [None, "[1]", "{"])
def test_a_cache_that_has_lost_its_checksums_is_converted_anew(features, tmp_path, content):
    sources = shards_for_features(features, tmp_path / "cache").folder / "sources.json"
    before = sources.read_bytes()
    sources.unlink() if content is None else sources.write_text(content)
    assert len(shards_for_features(features, tmp_path / "cache")) == 3
    assert sources.read_bytes() == before


def test_features_that_change_during_the_conversion_are_noticed(features, tmp_path):
    content = np.zeros((40_000, 4), np.float32)
    np.save(features / "s0.npy", content)

    def replace(done: int, total: int, slide: str) -> None:
        if done == 2:  # the first one has been read
            content[13_000] = 1
            keep_times(features / "s0.npy", lambda path: np.save(path, content))

    first = shards_for_features(features, tmp_path / "cache", progress=replace)
    second = shards_for_features(features, tmp_path / "cache")
    assert second.folder == first.folder  # no sample holds that row
    assert second.fingerprint != first.fingerprint


def test_features_that_became_unusable_are_an_error_though_there_is_a_cache(features, tmp_path):
    content = np.zeros((40_000, 4), np.float32)
    np.save(features / "s0.npy", content)
    shards_for_features(features, tmp_path / "cache")
    content[13_000] = np.nan
    keep_times(features / "s0.npy", lambda path: np.save(path, content))
    with pytest.raises(DataError, match="s0"):
        shards_for_features(features, tmp_path / "cache")


def test_another_setting_gets_a_new_name(features, tmp_path):
    first = shards_for_features(features, tmp_path / "cache")
    second = shards_for_features(features, tmp_path / "cache", dtype="float16")
    assert (first.dtype, second.dtype) == (np.float32, np.float16)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_layout_found_and_warnings_are_noted(features, tmp_path):
    notes = shards_for_features(features, tmp_path / "cache").notes
    assert notes[0].startswith("plain folder: 3 slides as .npy files")
    assert any("name no encoder" in note for note in notes)


def test_the_encoder_named_by_the_user_is_recorded(features, tmp_path):
    shards = shards_for_features(features, tmp_path / "cache", encoder_name="uni_v1")
    assert set(shards.provenance["encoder"]) == {"uni_v1"}
    assert not any("name no encoder" in note for note in shards.notes)


def test_files_of_another_encoder_than_named_are_refused(features, tmp_path):
    import h5py

    (tmp_path / "features_conch_v1").mkdir()
    with h5py.File(tmp_path / "features_conch_v1" / "a.h5", "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
    with pytest.raises(DataError, match="its encoder is conch_v1, not uni_v1"):
        shards_for_features(tmp_path / "features_conch_v1", tmp_path / "cache", encoder_name="uni_v1")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_cache_says_what_to_remove(features, tmp_path):
    folder = shards_for_features(features, tmp_path / "cache").folder
    (folder / "records.csv").unlink()
    with pytest.raises(ShardError, match=rf"remove {folder} and it is recreated"):
        shards_for_features(features, tmp_path / "cache")


def test_progress_counts_slides(features, tmp_path):
    steps = []
    shards_for_features(features, tmp_path / "cache", progress=lambda *step: steps.append(step))
    assert steps == [(0, 3, "s0"), (1, 3, "s1"), (2, 3, "s2"), (3, 3, "")]


def test_real_features_come_back_bit_for_bit(shared, tmp_path):
    import h5py

    shards = shards_for_features(shared / "data" / "mopadi_features", tmp_path)
    out = np.empty((777, 512), np.float32)
    shards.verify(0)
    shards.read_features(0, out)
    with h5py.File(shared / "data" / "mopadi_features" / "TCGA-AD-6964-01Z-00-DX1.h5") as file:
        assert np.array_equal(out, file["feats"][()])
        assert np.array_equal(shards.read_coords(0), file["coords"][()])
