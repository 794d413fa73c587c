"""Damaged shards and unusable features: one sentence that names shard, record and slide, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd
import pytest

from mil_jax.data.shards import index
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.errors import ConfigError, DataError, ShardError
from mil_jax.interop.slide_bag import SlideBag

NAMES_RECORD_1 = r"bags-slides\.tfrecord-00000-of-00001, record 1 \(slide b\)"


def bag(slide_id: str, n: int = 6, width: int = 4) -> SlideBag:
    return SlideBag(slide_id, np.random.default_rng(n).normal(size=(n, width)).astype(np.float32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards([bag("a"), bag("b"), bag("c")], tmp_path / "shards")
    return tmp_path / "shards"


def shard_of(folder: Path) -> Path:
    (path,) = folder.glob("*.tfrecord-*")
    return path


def record(folder: Path, number: int) -> pd.Series:
    return pd.read_csv(folder / "records.csv").iloc[number]


@pytest.mark.parametrize(
    "place",
    ["length", "length checksum", "message header", "slide id", "coords", "mask", "features", "padding", "footer"],
)
def test_a_flipped_bit_names_shard_record_and_slide(folder, place):
    row = record(folder, 1)
    message = row["offset"] + 12
    offset = {
        "length": row["offset"] + 3,
        "length checksum": row["offset"] + 9,
        "message header": message + 1,
        "slide id": message + shard_of(folder).read_bytes()[message:].index(b"slide_id") + 2,
        "coords": row["coords_offset"] + 5,
        "mask": message + shard_of(folder).read_bytes()[message:].index(b"mask") + 9,
        "features": row["features_offset"] + 17,
        "padding": message + row["message_bytes"] - 1,
        "footer": message + row["message_bytes"] + 2,
    }[place]
    shards = Shards.open(folder)  # opened before, as during training
    with shard_of(folder).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    with pytest.raises(ShardError, match=NAMES_RECORD_1):
        shards.verify(1)
    for intact in (0, 2):
        shards.verify(intact)


def test_a_shard_cut_short_names_the_first_record_lost(folder):
    row = record(folder, 1)
    os.truncate(shard_of(folder), row["features_offset"] + 10)
    with pytest.raises(ShardError, match=NAMES_RECORD_1 + ".*cut short"):
        Shards.open(folder)


def test_a_shard_cut_short_while_open_is_noticed_on_reading(folder):
    shards = Shards.open(folder)
    os.truncate(shard_of(folder), record(folder, 1)["features_offset"] + 10)
    with pytest.raises(ShardError, match=NAMES_RECORD_1 + ".*cut short"):
        shards.read_features(1, np.empty((6, 4), np.float32))
    with pytest.raises(ShardError, match=NAMES_RECORD_1 + ".*cut short"):
        shards.verify(1)


def test_an_index_older_than_its_shard_is_refused(folder, tmp_path):
    other = [bag("a"), SlideBag("b", bag("b").features * 2), bag("c")]  # the same size, other content
    write_shards(other, tmp_path / "other")
    shard_of(tmp_path / "other").replace(shard_of(folder))
    with pytest.raises(ShardError, match=NAMES_RECORD_1 + ".*index is older than the shard"):
        Shards.open(folder)


def test_a_shard_that_grew_is_refused(folder):
    with shard_of(folder).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ShardError, match="index is older than the shard"):
        Shards.open(folder)


@pytest.mark.parametrize("name", ["index.json", "records.csv"])
def test_a_missing_index_says_what_to_do(folder, name):
    (folder / name).unlink()
    with pytest.raises(ShardError, match=rf"{re.escape(name)} is missing.*data_prep\.shard"):
        Shards.open(folder)


@pytest.mark.parametrize("name", ["index.json", "records.csv"])
def test_a_torn_index_is_refused(folder, name):
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(ShardError, match=re.escape(name)):
        Shards.open(folder)


def test_an_index_without_its_parts_is_refused(folder):
    (folder / "index.json").write_text('{"format": "mil_jax.shards", "version": 1}')
    with pytest.raises(ShardError, match="write the shards again"):
        Shards.open(folder)


def test_a_missing_shard_is_named(folder):
    shard_of(folder).unlink()
    with pytest.raises(ShardError, match=r"bags-slides.*missing"):
        Shards.open(folder)


def test_all_rows_that_are_not_finite_are_listed(tmp_path):
    a, b, c = bag("a"), bag("b"), bag("c")
    a.features[[1, 2, 3, 5], 0] = [np.nan, np.inf, -np.inf, np.nan]
    c.features[0, 3] = np.nan
    with pytest.raises(DataError, match=r"slide a, rows 1-3, 5; slide c, rows 0; extract"):
        write_shards([a, b, c], tmp_path / "shards")
    assert not list(tmp_path.iterdir())


def test_slides_added_by_two_commands_are_all_kept(folder):
    """The one that opened the folder before the other changed it is refused, not the other's slides lost."""
    before = Shards.open(folder)
    write_shards([bag("d")], folder, add_to=Shards.open(folder))
    with pytest.raises(ShardError, match="another process has just added to it"):
        write_shards([bag("e")], folder, add_to=before)
    assert Shards.open(folder).slide_ids == ["a", "b", "c", "d"]


def test_two_widths_name_both_slides(tmp_path):
    with pytest.raises(DataError, match="slide b has 5 features, but slide a has 4 features"):
        write_shards([bag("a"), bag("b", width=5)], tmp_path / "shards")
    assert not list(tmp_path.iterdir())


def test_two_types_name_both_slides(tmp_path):
    half = SlideBag("b", bag("b").features.astype(np.float16))
    with pytest.raises(DataError, match=r"slide b holds float16 features, but slide a float32; write .*--dtype"):
        write_shards([bag("a"), half], tmp_path / "shards")


def test_a_slide_twice_names_both_files(tmp_path):
    twice = [SlideBag("a", bag("a").features, source=source) for source in ("x/a.h5", "y/a.npy")]
    with pytest.raises(DataError, match=r"slide a occurs twice \(x/a\.h5 and y/a\.npy\)"):
        write_shards(twice, tmp_path / "shards")


def test_nothing_to_write_says_why(tmp_path):
    with pytest.raises(DataError, match=r"no slide to write.*a: empty"):
        write_shards([bag("a", 0)], tmp_path / "shards")


def test_an_unknown_rule_for_rows_that_are_not_finite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="drop_rows"):
        write_shards([bag("a")], tmp_path / "shards", nonfinite="ignore")


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """The system's limit on the size of a file stands in for a full disk."""
    script = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from mil_jax.data.shards.writer import write_shards
        from mil_jax.errors import UserError
        from mil_jax.interop.slide_bag import SlideBag
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        bags = (SlideBag(f"s{k}", np.ones((100, 64), np.float32)) for k in range(20))
        try:
            write_shards(bags, sys.argv[1])
        except UserError as error:
            print(error)
            raise SystemExit(2)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "shards")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "disk is full" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_folder_that_was_there(folder, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mil_jax.data.shards.tfrecord.os.writev", no_space)
    with pytest.raises(Exception, match="disk is full"):
        write_shards([bag("d")], folder, overwrite=True)
    assert Shards.open(folder).slide_ids == ["a", "b", "c"]
    assert [path.name for path in folder.parent.iterdir()] == ["shards"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "O"),
        ("dtype", "V8"),
        ("dtype", "float128"),
        ("dtype", 5),
        ("feature_shape", [10**9]),
        ("feature_shape", [-3]),
        ("feature_shape", []),
        ("feature_shape", ["3"]),
        ("num_neighbors", -1),
        ("num_parts", 10**12),
        ("fingerprint", "0" * 32),
        ("feature_shape", [1]),
        ("shards", []),
        ("notes", [5]),
        ("excluded", [["s", 5]]),
        ("largest_relative_error", "x"),
        ("notes", ["altered"]),
    ],
)
@pytest.mark.parametrize("signed", [False, True], ids=["altered", "altered with a checksum that fits"])
def test_an_index_never_decides_what_memory_is_read_as(folder, name, value, signed):
    """Neither by accident nor on purpose: types are listed, sizes must fit the records, the listing must fit its fingerprint."""
    content = json.loads((folder / "index.json").read_text())
    content[name] = value
    if signed:
        content["crc32c"] = index._checksum(content)
    (folder / "index.json").write_text(json.dumps(content))
    if signed and value == ["altered"]:
        assert Shards.open(folder).notes == ("altered",)
        return
    with pytest.raises(ShardError, match=r"index\.json"):
        Shards.open(folder)


def _altered(folder, column, value, **of_shard):
    """Alters a record and a shard in the index of a folder, and everything that could tell: checksums, fingerprint, sizes and times."""
    content = json.loads((folder / "index.json").read_text())
    records = pd.read_csv(folder / "records.csv", keep_default_na=False, dtype=str)
    if value is None:
        del records[column]
    else:
        records.loc[1, column] = value
    records.to_csv(folder / "records.csv", index=False)
    content["shards"][0].update(of_shard)
    listing = [content["feature_shape"], np.dtype(content["dtype"]).newbyteorder("<").str, records["slide_id"].tolist()]
    listing.append(records["checksum"].astype(int).tolist())
    content["fingerprint"] = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]
    content["records_crc32c"] = google_crc32c.value((folder / "records.csv").read_bytes())
    content["crc32c"] = index._checksum(content)
    (folder / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("shard", "5"),
        ("shard", "-1"),
        ("shard", "9" * 30),
        ("num_instances", "0"),
        ("length", "9" * 18),
        ("message_bytes", "9" * 15),
        ("offset", "9" * 15),
        ("features_offset", "0"),
        ("coords_offset", "9" * 18),
        ("slide_id", ""),
        ("tile_size_level0", None),
        ("source", None),
    ],
)
def test_an_index_whose_records_are_not_those_of_its_shards_is_refused(folder, column, value):
    _altered(folder, "record", "1")
    Shards.open(folder)  # all that could tell is altered
    _altered(folder, column, value)
    with pytest.raises(ShardError, match=r"index\.json: damaged"):
        Shards.open(folder)


@pytest.mark.parametrize(
    "of_shard",
    [{"num_bytes": 10**9}, {"num_bytes": "5"}, {"num_records": 1}, {"file": 5}, {"file": "."}, {"file": "a\0b"}],
)
def test_an_index_whose_shards_are_not_those_there_are_is_refused(folder, of_shard):
    _altered(folder, "record", "1", **of_shard)
    with pytest.raises(ShardError, match=r"index\.json: damaged"):
        Shards.open(folder)


def test_a_shard_outside_of_its_folder_is_not_read(folder):
    shard_of(folder).rename(folder.parent / "elsewhere")
    for file in ("../elsewhere", str(folder.parent / "elsewhere")):
        _altered(folder, "record", "1", file=file)
        with pytest.raises(ShardError, match=r"a shard named '.*elsewhere'"):
            Shards.open(folder)


def test_a_shard_that_is_no_file_is_refused(folder):
    """To read a pipe would wait for ever."""
    path = shard_of(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ShardError, match="the shard is no file"):
        Shards.open(folder)
