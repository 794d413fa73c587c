"""Annotation files as QuPath, ASAP and TRIDENT write them, and as people leave them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.jobs import SlideError
from data_prep.slides.annotations import Outline, draw, read_outlines
from data_prep.slides.open_slide import shown_corner
from data_prep.tiles.tile_slide import SlideInputs

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}


def feature(classification, geometry=POLYGON, **properties):
    properties = {"objectType": "annotation", "classification": classification, **properties}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@pytest.fixture
def written(tmp_path):
    def write(*features):
        path = tmp_path / "s.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return path

    return write


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumor"}, "Tumor"),
        ({"names": ["Tumor", "Positive"]}, "Tumor: Positive"),
        ({"names": ["Tumor"]}, "Tumor"),
        ({"name": "Immune cells: CD3"}, "Immune cells: CD3"),
        ({"name": None}, "annotation"),
        ({"names": []}, "annotation"),
        ("Tumor", "Tumor"),
        ('{"name": "Tumor", "color": [200, 0, 0]}', "Tumor"),
        ("", "annotation"),
        (None, "annotation"),
    ],
)
def test_classes_of_all_versions_of_qupath(written, classification, name):
    (outline,) = read_outlines(written(feature(classification)))
    assert outline.name == name
    np.testing.assert_array_equal(outline.rings[0], SQUARE)


def test_an_area_without_a_class_is_named_by_its_name(written):
    assert [area.name for area in read_outlines(written(feature(None, name="ROI 1")))] == ["ROI 1"]


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        (None, "without a shape"),
        ({"type": "Polygon", "coordinates": []}, "with fewer than three corners"),
        ({"type": "Polygon", "coordinates": [SQUARE[:2]]}, "with fewer than three corners"),
        ({"type": "Polygon", "coordinates": [[]]}, "with fewer than three corners"),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE[:1]]]}, "with fewer than three corners"),
        ({"type": "Point", "coordinates": [3, 4]}, "points and lines"),
        ({"type": "LineString", "coordinates": SQUARE[:2]}, "points and lines"),
        ({"type": "GeometryCollection", "geometries": [None]}, "without a shape"),
    ],
)
def test_what_is_no_area_is_counted_and_the_others_stay(written, geometry, why):
    outlines = read_outlines(written(feature({"name": "odd"}, geometry), feature({"name": "Tumor"})))
    assert [area.name for area in outlines] == ["Tumor"]
    assert outlines.left_out == {why: 1}


@pytest.mark.parametrize("kind", ["cell", "detection", "tile"])
def test_detections_are_no_annotations(written, kind):
    outlines = read_outlines(written(feature({"name": "Tumor"}, objectType=kind), feature({"name": "Tumor"})))
    assert len(outlines) == 1
    assert outlines.left_out == {"detections": 1}


def test_collections_hold_areas(written):
    inner = {"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE]]}
    collection = {
        "type": "GeometryCollection",
        "geometries": [POLYGON, {"type": "GeometryCollection", "geometries": [inner]}],
    }
    assert [area.name for area in read_outlines(written(feature({"name": "Tumor"}, collection)))] == ["Tumor"] * 3


def test_a_hole_without_a_shape_leaves_its_area(written):
    (outline,) = read_outlines(written(feature("Tumor", {"type": "Polygon", "coordinates": [SQUARE, SQUARE[:2]]})))
    assert len(outline.rings) == 1


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [2, 2]]]},
        {"type": "Polygon", "coordinates": [[0, 1, 2]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e400, 1], [2, 2]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e13, 1], [2, 2]]]},
        {"coordinates": []},
        [],
    ],
)
def test_damaged_shapes_are_refused(written, geometry):
    with pytest.raises(SlideError, match=r"s\.geojson cannot be read as annotations"):
        read_outlines(written(feature("Tumor", geometry or [1])))


def test_files_that_are_nested_too_deep_are_refused(tmp_path):
    path = tmp_path / "s.geojson"
    path.write_text("[" * 200_000)
    with pytest.raises(SlideError, match="cannot be read as annotations"):
        read_outlines(path)


def test_asap_areas_without_a_shape_are_counted(tmp_path):
    corner = '<Coordinate Order="{}" X="{}" Y="{}"/>'
    places = "".join(corner.format(number, x, y) for number, (x, y) in enumerate(SQUARE))
    areas = "".join(
        f'<Annotation Type="{kind}" PartOfGroup="Tumor"><Coordinates>{text}</Coordinates></Annotation>'
        for kind, text in (("Polygon", places), ("Polygon", corner.format(0, 1, 1)), ("Dot", corner.format(0, 1, 1)))
    )
    path = tmp_path / "s.xml"
    path.write_text(f"<ASAP_Annotations><Annotations>{areas}</Annotations></ASAP_Annotations>")
    outlines = read_outlines(path)
    assert [area.name for area in outlines] == ["Tumor"]
    assert outlines.left_out == {"with fewer than three corners": 1, "points and lines": 1}


def cropped_slide(**properties):
    named = {f"openslide.bounds-{name}": str(value) for name, value in properties.items()}
    return SimpleNamespace(properties=named, dimensions=(5000, 4000))


def test_files_of_qupath_begin_where_it_crops_the_slide(tmp_path, written):
    path = written(feature("QuPath's"), {"type": "Feature", "geometry": POLYGON, "properties": {"tissue_id": 0}})
    slide = cropped_slide(x=1000, y=2000, width=800, height=900)
    here = SlideInputs(labels=path).outlines(slide)["labels"]
    np.testing.assert_array_equal(here[0].rings[0][0], [1000, 2000])
    np.testing.assert_array_equal(here[1].rings[0][0], [0, 0])  # TRIDENT counts from the slide's corner
    (first, _) = SlideInputs(labels=path, origin="level0").outlines(slide)["labels"]
    np.testing.assert_array_equal(first.rings[0][0], [0, 0])


def test_a_slide_that_is_shown_whole_has_its_own_corner():
    assert shown_corner(cropped_slide()) == (0, 0)
    assert shown_corner(cropped_slide(x=7, y=7, width=5000, height=4000)) == (0, 0)
    assert shown_corner(cropped_slide(x=7, y=9, width=500, height=400)) == (7, 9)


@pytest.mark.parametrize("far", [1e3, 2.0**31, 2.0**40])
@pytest.mark.parametrize("downsample", [1.0, 7.5])
def test_areas_that_reach_far_beyond_the_slide_are_drawn_where_they_lie(far, downsample):
    shape = (60, 80)
    right = Outline("right", (np.array([[300, -far], [far, -far], [far, far], [300, far]]),))
    expected = np.zeros(shape, bool)
    expected[:, int(300 / downsample) :] = True
    np.testing.assert_array_equal(draw([right], shape, downsample), expected)
    outside = Outline("outside", (np.array([[far, far], [far + 9, far], [far, far + 9]]),))
    assert not draw([outside], shape, downsample).any()


def test_clipping_keeps_slopes():
    """A half plane below a slanted line, whose corners lie far off."""
    far = 2.0**33
    area = Outline("below", (np.array([[-far, -far / 2], [far, far / 2], [far, far], [-far, far]]),))
    rows, columns = np.mgrid[:40, :40] + 0.5
    below = rows > columns / 2
    drawn = draw([area], (40, 40), 1.0)
    sure = np.abs(rows - columns / 2) > 1
    np.testing.assert_array_equal(drawn[sure], below[sure])
