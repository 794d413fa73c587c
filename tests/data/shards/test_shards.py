"""Shards: what is written comes back bit for bit, at random, and what was left out is counted."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mil_jax.data.buckets import Ladder
from mil_jax.data.shards import tfrecord
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.errors import DataError, UserError
from mil_jax.interop.slide_bag import Provenance, SlideBag


def bag(slide_id: str, n: int, width: int = 4, dtype: str = "float16", coords: bool = True) -> SlideBag:
    rng = np.random.default_rng(sum(map(ord, slide_id)))
    xy = rng.integers(0, 10_000, (n, 2)).astype(np.int32) if coords else None
    unit = "level0_pixels" if coords else "none"
    return SlideBag(slide_id, rng.normal(size=(n, width)).astype(dtype), xy, Provenance(512.0, 0.25, unit, "uni"))


def read(shards: Shards, i: int) -> np.ndarray:
    out = np.empty((shards.num_instances[i], *shards.feature_shape), shards.dtype)
    shards.read_features(i, out)
    return out


def check_equal(shards: Shards, bags: list[SlideBag]) -> None:
    assert shards.slide_ids == [b.slide_id for b in bags]
    for i, expected in enumerate(bags):
        shards.verify(i)
        assert read(shards, i).tobytes() == expected.features.tobytes()
        coords = shards.read_coords(i)
        assert coords is None if expected.coords is None else np.array_equal(coords, expected.coords)


shapes = st.sampled_from([(1,), (5,), (64,), (3, 4, 2), (28, 28, 1)])
dtypes = st.sampled_from(["float16", "float32", "float64", "uint8", "int16", "int32"])
ids = st.lists(
    st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=12), min_size=1, max_size=5, unique=True
)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), shape=shapes, dtype=dtypes, slide_ids=ids, shard_bytes=st.sampled_from([1, 2000, 1 << 30]))
def test_round_trip_is_bit_exact(data, shape, dtype, slide_ids, shard_bytes):
    finite = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else {}
    bags = []
    for slide_id in slide_ids:
        n = data.draw(st.integers(1, 40))
        elements = hnp.from_dtype(np.dtype(dtype), **finite)
        features = data.draw(hnp.arrays(dtype, (n, *shape), elements=elements, fill=elements))
        coords = data.draw(st.none() | hnp.arrays(np.int32, (n, 2)))
        unit = "none" if coords is None else "um"
        bags.append(SlideBag(slide_id, features, coords, Provenance(coordinate_unit=unit)))
    folder = Path(tempfile.mkdtemp())
    try:
        write_shards(bags, folder / "shards", shard_bytes=shard_bytes)
        check_equal(Shards.open(folder / "shards"), bags)
    finally:
        shutil.rmtree(folder)


def test_reading_threads_do_not_disturb_one_another(tmp_path):
    bags = [bag(f"s{k}", 50 + k) for k in range(20)]
    write_shards(bags, tmp_path / "shards", shard_bytes=4000)
    shards, wrong = Shards.open(tmp_path / "shards"), []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(len(shards)):
            shards.verify(i)
            if not np.array_equal(read(shards, i), bags[i].features):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_records_are_padded_to_the_ladder_and_masked(tmp_path):
    report = write_shards([bag("a", 5), bag("b", 30)], tmp_path / "shards", ladder=Ladder((16, 32), 0.0))
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    example = tf_examples(tmp_path / "shards" / index["shards"][0]["file"])[0]
    mask = np.frombuffer(example["mask"].bytes_list.value[0], bool)
    features = np.frombuffer(example["features"].bytes_list.value[0], "<f2").reshape(16, 4)
    assert mask.tolist() == [True] * 5 + [False] * 11
    assert np.array_equal(features[:5], bag("a", 5).features)
    assert not features[5:].any()
    assert report.padding_waste == pytest.approx(1 - 35 / 48)


def test_records_are_tensorflow_examples(tmp_path):
    write_shards([bag("a", 5)], tmp_path / "shards")
    (example,) = tf_examples(next((tmp_path / "shards").glob("*.tfrecord-*")))
    assert example["slide_id"].bytes_list.value[0] == b"a"
    assert example["num_instances"].int64_list.value[:] == [5]
    assert example["tile_size_level0"].float_list.value[:] == [512.0]
    assert example["coordinate_unit"].bytes_list.value[0] == b"level0_pixels"
    assert example["encoder"].bytes_list.value[0] == b"uni"


def tf_examples(path: Path) -> list:
    """Messages of a TFRecord file parsed by the published protobuf definition."""
    from tensorflow_datasets.proto import tf_example_pb2

    raw, examples = path.read_bytes(), []
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        examples.append(tf_example_pb2.Example.FromString(raw[12 : 12 + length]).features.feature)
        raw = raw[12 + length + 4 :]
    return examples


def test_masked_checksum_is_tfrecords():
    # crc32c("123456789") is E3069283 (RFC 3720's check value), masked as TFRecord does
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c([b"1234", b"56789"]) == (rotated + 0xA282EAD8) % 2**32


def test_metadata_for_tensorflow_datasets_lies_beside_the_shards(tmp_path):
    write_shards([bag("a", 5), bag("b", 9)], tmp_path / "shards", shard_bytes=1)
    info = json.loads((tmp_path / "shards" / "dataset_info.json").read_text())
    assert info["splits"][0]["name"] == "slides"
    assert info["splits"][0]["shardLengths"] == ["1", "1"]
    assert "features" in json.loads((tmp_path / "shards" / "features.json").read_text())["featuresDict"]["features"]


def test_provenance_comes_back(tmp_path):
    bags = [bag("a", 3), SlideBag("b", np.ones((2, 4), np.float16), source="x/b.h5", source_mtime=12.5)]
    write_shards(bags, tmp_path / "shards")
    table = Shards.open(tmp_path / "shards").provenance
    assert table["tile_size_level0"][0] == 512.0
    assert table["mpp_level0"][0] == 0.25
    assert table["encoder"].tolist() == ["uni", "unknown"]
    assert math.isnan(table["tile_size_level0"][1])
    assert table["source"][1] == "x/b.h5"
    assert table["source_mtime"][1] == 12.5


def test_fingerprint_follows_the_data_and_not_the_place(tmp_path):
    write_shards([bag("a", 3), bag("b", 4)], tmp_path / "one")
    write_shards([bag("a", 3), bag("b", 4)], tmp_path / "two", shard_bytes=1)
    write_shards([bag("a", 3), bag("c", 4)], tmp_path / "other")
    one, two, other = (Shards.open(tmp_path / name).fingerprint for name in ("one", "two", "other"))
    assert one == two != other


def test_a_copied_folder_opens(tmp_path):
    write_shards([bag("a", 3)], tmp_path / "shards")
    shutil.copytree(tmp_path / "shards", tmp_path / "copy", copy_function=shutil.copy)
    check_equal(Shards.open(tmp_path / "copy"), [bag("a", 3)])


def test_empty_slides_are_excluded_and_counted(tmp_path):
    report = write_shards([bag("a", 3), bag("empty", 0)], tmp_path / "shards", excluded=[("locked", "in progress")])
    assert report.excluded == (("locked", "in progress"), ("empty", "empty"))
    assert Shards.open(tmp_path / "shards").excluded == report.excluded
    assert Shards.open(tmp_path / "shards").slide_ids == ["a"]


def test_rows_that_are_not_finite_can_be_dropped(tmp_path):
    broken = bag("a", 6)
    broken.features[2, 1] = np.nan
    report = write_shards([broken], tmp_path / "shards", nonfinite="drop_rows")
    shards = Shards.open(tmp_path / "shards")
    keep = [0, 1, 3, 4, 5]
    assert np.array_equal(read(shards, 0), broken.features[keep])
    assert np.array_equal(shards.read_coords(0), broken.coords[keep])
    assert report.dropped_rows == {"a": 1}


def test_slides_with_rows_that_are_not_finite_can_be_dropped(tmp_path):
    broken = bag("a", 6)
    broken.features[2, 1] = np.inf
    report = write_shards([broken, bag("b", 3)], tmp_path / "shards", nonfinite="drop_slide")
    assert Shards.open(tmp_path / "shards").slide_ids == ["b"]
    assert report.excluded == (("a", "1 of 6 rows are not finite"),)


def test_a_cast_to_float16_records_its_largest_relative_error(tmp_path):
    features = np.array([[1.0, 3.14159265], [0.1, 2000.3]], np.float32)
    report = write_shards([SlideBag("a", features)], tmp_path / "shards", dtype="float16")
    stored = features.astype(np.float16).astype(np.float64)
    assert report.largest_relative_error == pytest.approx(np.abs(stored / features - 1).max(), rel=1e-3)
    assert Shards.open(tmp_path / "shards").dtype == np.float16


def test_a_cast_that_overflows_names_slide_and_row(tmp_path):
    features = np.ones((3, 2), np.float32)
    features[1, 0] = 7e4
    with pytest.raises(DataError, match=r"slide a, row 1: 70000 is too large for float16"):
        write_shards([SlideBag("a", features)], tmp_path / "shards", dtype="float16")


def test_big_endian_features_are_stored_little_endian(tmp_path):
    write_shards([SlideBag("a", np.arange(6, dtype=">f4").reshape(3, 2))], tmp_path / "shards")
    assert np.array_equal(read(Shards.open(tmp_path / "shards"), 0).ravel(), np.arange(6))


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    write_shards([bag("a", 3)], tmp_path / "shards")
    with pytest.raises(UserError, match="overwrite"):
        write_shards([bag("b", 3)], tmp_path / "shards")
    assert Shards.open(tmp_path / "shards").slide_ids == ["a"]
    write_shards([bag("b", 3)], tmp_path / "shards", overwrite=True)
    assert Shards.open(tmp_path / "shards").slide_ids == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="left alone"):
        write_shards([bag("a", 3)], tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_the_writer_holds_one_bag_at_a_time(tmp_path):
    """Each bag must be free to go before the next but one is asked for."""
    import weakref

    alive: list[weakref.ref] = []

    def stream():
        for k in range(5):
            features = np.ones((10, 4), np.float16) * k
            alive.append(weakref.ref(features))
            yield SlideBag(f"s{k}", features)
            del features
            assert sum(ref() is not None for ref in alive) <= 1

    write_shards(stream(), tmp_path / "shards")
    assert len(alive) == 5


@pytest.mark.parametrize(
    "out", [np.empty((2, 4), np.float16), np.empty((3, 4), np.float32), np.empty((4, 3), np.float16).T]
)
def test_an_unfit_target_array_is_refused(tmp_path, out):
    write_shards([bag("a", 3)], tmp_path / "shards")
    with pytest.raises(ValueError, match="out must be"):
        Shards.open(tmp_path / "shards").read_features(0, out)


def test_ids_like_formulas_are_inert_in_the_table_and_read_back(tmp_path):
    bags = [SlideBag(name, np.ones((3, 2), np.float32)) for name in ("=1+1", "'=1", "-5", "+a", "b")]
    write_shards(bags, tmp_path / "shards", for_tensorflow=False)
    assert Shards.open(tmp_path / "shards").slide_ids == ["=1+1", "'=1", "-5", "+a", "b"]
    lines = (tmp_path / "shards" / "records.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["'=1+1", "''=1", "-5", "'+a", "b"]
