"""What the commands over slides share: finding them, dividing them among jobs, resuming, and processes that die."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from data_prep.jobs import (
    FAILED,
    OK,
    Records,
    Slide,
    SlideError,
    find_slides,
    in_part,
    run_all,
)
from mil_jax.cli.arguments import parse_share
from mil_jax.errors import ConfigError, DataError, UserError


@pytest.fixture
def slides(tmp_path) -> list[Slide]:
    for name in ("a 10.svs", "a 2.tiff", "sub/TCGA-1.F6E9.svs", "notes.txt", "sub/.hidden.svs", "Präparat.ndpi"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"slide")
    return find_slides(tmp_path / "in")


def records(folder: Path, **settings: object) -> Records:
    made = Records(folder, "tile", "tiles.csv", ["tiles"])
    made.use_settings(settings)
    return made


def test_a_part_is_done_by_one_process_at_a_time(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with records(tmp_path).claimed((1, 2)):
            os.write(writing, b"claimed")
            signal.pause()
    os.read(reading, 7)
    with records(tmp_path).claimed((2, 2)):
        pass
    with pytest.raises(ConfigError, match="another process does the same there now"), records(tmp_path).claimed((1, 2)):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with records(tmp_path).claimed((1, 2)):
        pass
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == ["tile.json"]


def test_slides_are_found_in_subfolders_in_natural_order(slides):
    assert [slide.slide_id for slide in slides] == ["Präparat", "TCGA-1.F6E9", "a 2", "a 10"]


def test_an_id_twice_is_refused_with_both_files(slides, tmp_path):
    (tmp_path / "in" / "sub" / "a 2.svs").touch()
    with pytest.raises(DataError, match=r"a 2\.(svs|tiff) and .*a 2\.(svs|tiff)"):
        find_slides(tmp_path / "in")


def test_no_folder_and_no_slides_are_refused(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError):
            find_slides(folder)


def test_the_parts_of_all_jobs_are_all_slides_once(slides):
    parts = [in_part(slides, parse_share("--shard", f"{number}/3")) for number in (1, 2, 3)]
    assert sorted(slide.slide_id for part in parts for slide in part) == sorted(slide.slide_id for slide in slides)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", f"1/{10**10}"])
def test_a_wrong_part_is_refused(text):
    with pytest.raises(ConfigError, match=r"--shard=.*1/10"):
        parse_share("--shard", text)


def test_a_slide_is_done_until_it_its_inputs_or_the_settings_change(slides, tmp_path):
    kept, slide = records(tmp_path / "work", tile=256), slides[0]
    assert not kept.is_done(slide, [1])
    kept.run(slide, lambda: {"tiles": 3}, [1])
    assert kept.is_done(slide, [1])
    assert not kept.is_done(slide, [2])
    os.utime(slide.path, ns=(0, 0))
    assert not kept.is_done(find_slides(slide.path)[0], [1])
    with pytest.raises(ConfigError, match="tile=256, now 512"):
        records(tmp_path / "work", tile=512)
    kept.use_settings({"tile": 512}, overwrite=True)
    assert not kept.is_done(slide, [1])
    assert kept.rows() == []


def test_what_stops_one_slide_is_its_status_and_tried_again(slides, tmp_path):
    def refuse() -> dict:
        raise SlideError("unreadable", "not a slide")

    def fail() -> dict:
        raise ValueError("a bug")

    def fill() -> dict:
        raise UserError("the disk is full")

    kept = records(tmp_path)
    assert kept.run(slides[0], refuse)["status"] == "unreadable"
    assert "ValueError: a bug (test_jobs.py, line" in kept.run(slides[1], fail)["reason"]
    with pytest.raises(UserError):
        kept.run(slides[2], fill)
    assert not any(map(kept.is_done, slides))
    kept.run(slides[0], lambda: {"tiles": 1})
    assert kept.write_table()[0]["status"] == OK
    lines = (tmp_path / "tiles.csv").read_text().splitlines()
    assert lines[0] == "slide,path,status,reason,tiles,seconds,size,mtime_ns"
    assert [line.split(",")[0] for line in lines[1:]] == ["Präparat", "TCGA-1.F6E9"]


def one_slide(folder: Path, slide: Slide) -> dict:
    if slide.slide_id == "a 10":
        os.kill(os.getpid(), signal.SIGKILL)
    return records(folder).run(slide, lambda: {"tiles": 1})


def mark_crashed(folder: Path, slide: Slide, reason: str) -> dict:
    return records(folder).write(slide, {"status": FAILED, "reason": reason}, None, 0.0)


def test_a_slide_that_kills_its_process_does_not_take_the_others_with_it(slides, tmp_path):
    rows = list(run_all(slides, partial(one_slide, tmp_path), partial(mark_crashed, tmp_path), workers=2))
    assert {row["slide"]: row["status"] for row in rows} == {
        "a 2": OK,
        "a 10": FAILED,
        "Präparat": OK,
        "TCGA-1.F6E9": OK,
    }
    assert len(records(tmp_path).rows()) == 4
