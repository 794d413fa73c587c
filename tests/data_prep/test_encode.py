"""Tiles to features: the right numbers in the right order, the same files however they are made, and what cannot be used is said."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import jax.numpy as jnp
import numpy as np
import openslide
import pytest
from PIL import Image

from data_prep import encode, tile
from data_prep.demo_slides import draw_slide, write_slide
from data_prep.features.encode_slide import tiled_slides
from data_prep.features.encoder import batched, prepared
from data_prep.features.prefetch import Prefetcher
from data_prep.jobs import Records, Slide
from data_prep.tiles.coordinates import read_coordinates
from mil_jax.bags import Bag
from mil_jax.encoders.registry import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, bare_encoder
from mil_jax.encoders.weights import load_weights
from mil_jax.errors import DataError
from mil_jax.files import id_file
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.torch_checkpoints import export_state_dict
from tests.commands import Ended, contents, run

NAMES = ("TCGA-1.F6E9 a", "Präparat 2")
SIDE = 32
OWN = (
    "--encoder=resnet18",
    f"--input-size={SIDE}",
    f"--mean={','.join(map(str, IMAGENET_MEAN))}",
    f"--std={','.join(map(str, IMAGENET_STD))}",
    "--pool=mean",
    "--batch-size=16",
)
RANDOM = (*OWN, "--weights=random")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    """A folder with two slides (spaces, dots and an umlaut in their names) and their tiles, at two scales."""
    folder = tmp_path_factory.mktemp("encode")
    for number, name in enumerate(NAMES):
        write_slide(folder / "slides", name, draw_slide(number, 1024, 1024), 0.5)
    arguments = ["--slides", str(folder / "slides"), "--out", str(folder / "work"), "--mpp=0.5,2", "--tile=128"]
    assert tile.main([*arguments, "--workers=1"]) == 0
    return folder


@pytest.fixture
def work(tiled, tmp_path) -> Path:
    shutil.copytree(tiled / "work", tmp_path / "work")
    return tmp_path / "work"


def test_a_slide_with_a_name_like_a_formula_is_found_in_the_report(tmp_path):
    records = Records(tmp_path, "tile", "tiles.csv", [])
    records.use_settings({})
    records.run(Slide("=1+1", tmp_path / "=1+1.svs", 3, 4), dict)
    assert records.write_table()[0]["slide"] == "=1+1"
    assert (tmp_path / "tiles.csv").read_text().splitlines()[1].startswith("'=1+1,")
    assert [slide.slide_id for slide in tiled_slides(str(tmp_path), 0)[0]] == ["=1+1"]


def encoded(work: Path, capsys, *arguments: str, code: int = 0) -> Ended:
    ended = run(encode.main, [f"--work={work}", *arguments], capsys)
    assert ended.code == code, ended.out + ended.err
    return ended


@pytest.fixture(scope="module")
def features(tiled) -> Path:
    """The features of an undisturbed run, float32."""
    shutil.copytree(tiled / "work", tiled / "encoded")
    assert encode.main([f"--work={tiled / 'encoded'}", *RANDOM, "--dtype=float32"]) == 0
    return tiled / "encoded" / "features"


def test_the_features_are_those_of_the_tiles_in_their_order(tiled, features):
    encoder = bare_encoder("resnet18", Preprocessing(SIDE), "mean")
    encoder, params = load_weights(encoder, "random")
    for name in NAMES:
        with h5py.File(features / f"{name}.h5") as file:
            found, coords = file["features"][()], file["coords"][()]
        np.testing.assert_array_equal(coords, read_coordinates(tiled / "work" / "coords" / f"{name}.h5").coords)
        assert 4 < len(coords) == len(found)
        pixels = []
        with openslide.OpenSlide(tiled / "slides" / f"{name}.tiff") as slide:
            for x, y in coords[:3]:
                picture = slide.read_region((x, y), 0, (128, 128)).convert("RGB")
                pixels.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
        images = jnp.asarray((np.stack(pixels) / 255 - IMAGENET_MEAN) / IMAGENET_STD, jnp.float32)
        wanted = encoder.module.apply({"params": params}, Bag(images, jnp.ones(3, bool))).features
        np.testing.assert_allclose(found[:3], wanted, atol=1e-4 * float(jnp.abs(wanted).max()))


def test_the_files_say_what_they_are_and_are_read_as_feature_files(features):
    layout = recognise(features)
    assert sorted(file.slide_id for file in layout.files) == sorted(NAMES)
    slide = layout.read(layout.files[0])
    assert slide.provenance.encoder == "resnet18"
    assert (slide.provenance.tile_size_level0, slide.provenance.mpp_level0) == (128, 0.5)
    with h5py.File(layout.files[0].path) as file:
        said = dict(file["features"].attrs)
        assert file["features"].chunks is None
        assert len(file["parent"]) == len(file["features"])
    assert "random" in said["weights"]
    assert (said["precision"], said["input_size"], said["interpolation"]) == ("float32", SIDE, "bilinear")


def test_what_is_done_is_not_done_again_and_the_rest_gives_the_same_files(features, work, capsys):
    encoded(work, capsys, *RANDOM, "--dtype=float32", "--shard=2/2")
    first = contents(work / "features")
    assert len(first) == 1
    times = {path: path.stat().st_mtime_ns for path in (work / "features").iterdir()}
    ended = encoded(work, capsys, *RANDOM, "--dtype=float32")
    assert "2 slides with tiles, 1 done before" in ended.out
    assert "Warning: random weights" in ended.out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(work / "features") == contents(features)
    with (work / "features.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "ok"]
    next(iter(times)).unlink()
    assert "1 done before" in encoded(work, capsys, *RANDOM, "--dtype=float32").out
    assert contents(work / "features") == contents(features)


@pytest.mark.full
def test_random_weights_are_warned_of_and_halves_are_close(features, work, capsys):
    ended = encoded(work, capsys, *RANDOM)
    assert "Warning: random weights" in ended.out
    for name in NAMES:
        with h5py.File(features / f"{name}.h5") as exact, h5py.File(work / "features" / f"{name}.h5") as stored:
            assert stored["features"].dtype == np.float16
            np.testing.assert_allclose(stored["features"][()], exact["features"][()], rtol=2e-3, atol=1e-4)


@pytest.mark.full
def test_bfloat16_is_near_float32(features, work, capsys):
    encoded(work, capsys, *RANDOM, "--precision=bfloat16", "--dtype=float32", "--shard=1/2")
    (path,) = (work / "features").iterdir()
    with h5py.File(features / path.name) as exact, h5py.File(path) as found:
        wanted, vectors = exact["features"][()], found["features"][()]
    cosine = (wanted * vectors).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(wanted, vectors)


def test_a_slide_that_was_replaced_is_a_status_and_the_others_are_encoded(tiled, work, tmp_path, capsys):
    shutil.copytree(tiled / "slides", tmp_path / "slides")
    first, second = (tmp_path / "slides" / f"{name}.tiff" for name in NAMES)
    for path in (first, second):
        shutil.copystat(tiled / "slides" / path.name, path)
    os.utime(first, ns=(0, 0))
    ended = encoded(work, capsys, *RANDOM, f"--slides={tmp_path / 'slides'}", "--strict", code=2)
    assert "1 slide replaced" in ended.out
    assert [path.stem for path in (work / "features").iterdir()] == [NAMES[1]]


@pytest.mark.full
def test_a_damaged_coordinate_file_is_a_status(work, capsys):
    (work / "coords" / f"{NAMES[0]}.h5").write_bytes(b"nothing")
    assert "tile this slide again" in encoded(work, capsys, *RANDOM).out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--encoder=uni_v1"], "--weights is missing"),
        (["--encoder=uni_v1", "--weights=nowhere.bin"], "no such checkpoint file"),
        (["--encoder=uni_v1", "--weights=random", "--mean=0,0,0"], "--mean belongs to uni_v1's definition"),
        (["--encoder=resnet18", "--weights=random"], "give --mean and --std and --input-size and --pool"),
        (["--encoder=unni_v1", "--weights=random"], "did you mean 'uni_v1'"),
        ([*RANDOM, "--std=1,0,1"], "three positive numbers"),
        ([*RANDOM, "--out=../elsewhere"], "name of a folder in --work"),
        ([*RANDOM, "--scale=4"], "tile at several scales first"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(work, capsys, arguments, sentence):
    assert sentence in encoded(work, capsys, *arguments, code=2).err


def test_weights_of_another_architecture_are_refused(work, tmp_path, capsys):
    encoder = bare_encoder("resnet18", Preprocessing(SIDE), "mean")
    params = load_weights(encoder, "random")[1]
    np.savez(tmp_path / "w.npz", **export_state_dict(encoder.module, params, ""))
    own = [argument.replace("resnet18", "resnet34") for argument in OWN]
    ended = encoded(work, capsys, *own, f"--weights={tmp_path / 'w.npz'}", code=2)
    assert "w.npz: holds the weights of another network than resnet34" in ended.err


def test_other_settings_in_the_same_folder_are_refused(work, capsys):
    encoded(work, capsys, *RANDOM, "--shard=1/2")
    ended = encoded(work, capsys, *RANDOM, "--dtype=float32", code=2)
    assert "was begun with other settings (dtype='float16', now 'float32')" in ended.err


def test_preparing_is_the_resizing_and_cutting_of_the_encoders_pipelines():
    tile_pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cut = prepared(tile_pixels, Preprocessing(28, resize=32, interpolation="bicubic"))
    resized = np.asarray(Image.fromarray(tile_pixels).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(cut, resized[2:30, 2:30])
    assert prepared(tile_pixels, Preprocessing(64)) is not None


def test_batches_have_one_size_and_the_last_one_says_how_many():
    tiles = [np.full((2, 2, 3), k, np.uint8) for k in range(5)]
    batches = list(batched(tiles, 3))
    assert [(pixels.shape, count) for pixels, count in batches] == [((3, 2, 2, 3), 3), ((3, 2, 2, 3), 2)]
    assert [int(pixels[k, 0, 0, 0]) for pixels, count in batches for k in range(count)] == [0, 1, 2, 3, 4]


def test_what_one_slide_raises_does_not_reach_the_next():
    slides = [Slide(name, Path(name), 0, 0) for name in "abc"]

    def read(slide):
        yield np.zeros(1), 1
        if slide.slide_id == "b":
            raise ValueError(slide.slide_id)

    with Prefetcher(slides, read) as ahead:
        assert len(list(ahead.batches(slides[0]))) == 1
        with pytest.raises(ValueError, match="b"):
            list(ahead.batches(slides[1]))
        assert len(list(ahead.batches(slides[2]))) == 1


@pytest.mark.full
def test_a_killed_command_started_again_gives_the_same_files(tiled, features, work):
    command = [sys.executable, "-m", "data_prep.encode", f"--work={work}", *RANDOM, "--dtype=float32"]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = time.monotonic()
        while process.poll() is None and time.monotonic() - before < 60:
            if any((work / "features").glob("*.h5")) or any((work / "features").glob(".*")):
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(work / "features") == contents(features)


@pytest.mark.parametrize("name", ["../../victim", "a/b", "a\\b", "..", "CON", "nul.1", "tab\there", ".hidden"])
def test_an_id_in_a_table_never_becomes_a_path(name, tmp_path):
    """Neither to write nor to remove a file elsewhere."""
    with pytest.raises(DataError, match="cannot be the name of a file"):
        id_file(tmp_path, name, ".h5")
    with pytest.raises(DataError, match="cannot be the name of a file"):
        Records(tmp_path, "encode", "encode.csv", ("slide",)).read(name)
