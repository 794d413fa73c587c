"""Synthetic slides: what OpenSlide sees of them, that they are always the same, and what is true about them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import openslide

from data_prep import demo_slides
from tests.commands import contents, run

SMALL = ("--count=2", "--width=1024", "--height=1040", "--mpp=0.4")


def test_openslide_opens_all_levels_and_the_same_command_draws_the_same(tmp_path, capsys):
    for folder in ("one", "again"):
        assert run(demo_slides.main, ["--out", str(tmp_path / folder), *SMALL], capsys).code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    with openslide.OpenSlide(tmp_path / "one" / "demo_02.tiff") as slide:
        assert slide.level_dimensions == ((1024, 1040), (256, 260), (64, 65))
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == 0.4
        picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    tissue = cv2.imread(str(tmp_path / "one" / "truth" / "demo_02_tissue.png"), cv2.IMREAD_GRAYSCALE) > 0
    small = cv2.resize(picture, tissue.shape[::-1], interpolation=cv2.INTER_AREA)
    assert small[~tissue].mean() > 225 > small[tissue].mean() + 30
    lines = (tmp_path / "one" / "labels.csv").read_text().splitlines()
    assert lines == ["slide_id,case_id,label", "demo_01,P01,normal", "demo_02,P02,lesion"]
    features = [json.loads((tmp_path / "one" / "truth" / f"demo_0{k}.geojson").read_text())["features"] for k in (1, 2)]
    assert not features[0]
    assert features[1]


def test_the_lesion_lies_in_the_tissue_and_is_darker():
    drawn = demo_slides.draw_slide(4, 1024, 1024, lesion=True)
    assert (drawn.tissue | ~drawn.lesion).all()
    small = cv2.resize(drawn.picture, drawn.lesion.shape[::-1], interpolation=cv2.INTER_AREA).mean(axis=-1)
    assert small[drawn.lesion].mean() < small[drawn.tissue & ~drawn.lesion].mean()
