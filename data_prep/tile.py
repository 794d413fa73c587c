"""Command: a folder of slides to the coordinates of their tiles, with a picture of each slide and a report.

One slide is the unit of work (`slide_tiles.py`), done in processes side by side, or on many hosts by `--shard i/n`. A slide that
cannot be used is a line of the report, not the end of the command.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from absl import flags

from data_prep.cli import parsed, progress
from data_prep.jobs import (
    EMPTY,
    FAILED,
    OK,
    Records,
    Row,
    Slide,
    find_slides,
    in_part,
    other_slides,
    run_all,
)
from data_prep.slides.annotations import annotation_files
from data_prep.slides.open_slide import PLAUSIBLE_MAGNIFICATION, PLAUSIBLE_MPP, read_overrides
from data_prep.slides.segmentation import CONTOUR_FNS, PRESETS, Segmentation, checked, preset
from data_prep.tiles.coordinates import COORDS
from data_prep.tiles.quality import MEASURES
from data_prep.tiles.tile_slide import COLUMNS, ORIGINS, QC, SlideInputs, TileSettings, tile_slide
from mil_jax.cli.arguments import parse_share
from mil_jax.cli.console import run_command, say
from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, DataError
from mil_jax.files import tidy
from mil_jax.interop.feature_files import counted

ABOUT = """Finds the tissue of slides and the tiles on it.

usage: python -m data_prep.tile --slides DIR --out WORK (--mpp M | --magnification X | --level L) [settings]

examples:
  python -m data_prep.tile --slides slides/ --out work/ --mpp 0.5 --tile 256
  python -m data_prep.tile --slides slides/ --out work/ --magnification 20,5 --preset biopsy     two scales, with parents
  python -m data_prep.tile --slides slides/ --out work/ --level 0 --step 256 --preset tcga       as CLAM does
  python -m data_prep.tile --slides slides/ --out work/ --mpp 0.5 --shard $SLURM_ARRAY_TASK_ID/100

WORK gets coords/SLIDE.h5, qc/SLIDE.jpg and tiles.csv. A command that was stopped goes on when it is started again."""

KINDS = ("mpp", "magnification", "level")
SETTINGS_OF_SEGMENTATION = [field.name for field in dataclasses.fields(Segmentation)]
LIMITS = ("min_sharpness", "max_pen", "max_glass", "max_fold")
_SHOWN = 5


def define_flags(values: flags.FlagValues) -> None:
    """The command's settings."""

    def text(name: str, default: str | None, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    def whole(name: str, default: int | None, meaning: str, least: int = 0) -> None:
        flags.DEFINE_integer(name, default, meaning, lower_bound=least, flag_values=values)

    def number(name: str, default: float | None, meaning: str) -> None:
        flags.DEFINE_float(name, default, meaning, lower_bound=0.0, flag_values=values)

    def truth(name: str, default: bool | None, meaning: str) -> None:
        flags.DEFINE_bool(name, default, meaning, flag_values=values)

    text("slides", "", "folder of slides, searched with its subfolders, or one slide")
    text("out", "", "folder to write to")
    text("mpp", "", "micrometres per pixel of the tiles; several with commas, the finest first, each with its parents")
    text(
        "magnification",
        "",
        "instead of --mpp: magnification of the tiles, by the slide's objective; several with commas",
    )
    whole("level", None, "instead of --mpp: a level of the slide's pyramid, as it is")
    whole("step", 0, "with --level: pixels of that level between tiles; 0: --tile")
    whole("tile", 256, "edge of a tile in its own pixels", least=8)
    whole("overlap", 0, "pixels that neighbouring tiles share")
    number("min-tissue", 0.25, "least share of a tile that is tissue")
    text("preset", "default", f"how tissue is found: {', '.join(PRESETS)}, or a preset file of CLAM (csv)")
    meanings = {
        "seg_um": "micrometres per pixel of the picture that tissue is found on; 0: by seg_level",
        "sthresh": "threshold of saturation",
        "mthresh": "edge of the median filter, odd",
        "close": "edge of the closing; 0: none",
        "a_t": "least area of tissue, in squares of 512 level-0 pixels",
        "a_h": "least area of a hole, in the same; smaller ones count as tissue",
        "max_n_holes": "most holes of a piece of tissue",
    }
    for name, meaning in meanings.items():
        (number if name in ("seg_um", "a_t", "a_h") else whole)(name, None, f"{meaning}; unset: the preset's")
    flags.DEFINE_integer(
        "seg_level",
        None,
        "level that tissue is found on, -1: nearest 1/64; unset: the preset's",
        lower_bound=-1,
        flag_values=values,
    )
    truth("use_otsu", None, "choose the threshold by Otsu's method; unset: the preset's")
    flags.DEFINE_enum(
        "contour_fn",
        None,
        CONTOUR_FNS,
        "which tiles are kept: by share of tissue or CLAM's points; unset: the preset's",
        flag_values=values,
    )
    text("roi", "", "folder of annotations SLIDE.geojson or SLIDE.xml: tiles only inside")
    text("exclude", "", "folder of annotations: no tiles inside")
    text("labels", "", "folder of annotations: the share of each class is stored for each tile")
    flags.DEFINE_enum(
        "annotation-origin",
        ORIGINS[0],
        ORIGINS,
        "where coordinates of QuPath's files begin: at the part of the slide that it shows (bounds), or at the slide's corner, "
        "as with its --no-crop",
        flag_values=values,
    )
    text("mpp-table", "", "table with columns slide, mpp for slides that do not say theirs, or say it wrong")
    text("magnification-table", "", "the same with columns slide, magnification")
    truth("quality", False, f"measure {', '.join(MEASURES)} of each tile")
    for name in LIMITS:
        number(name.replace("_", "-"), None, f"drop tiles with {'less' if name.startswith('min') else 'more'}")
    whole("workers", 0, "processes side by side; 0: one per core")
    text("shard", "", "i/n: do only the i-th of n parts, for job arrays")
    truth("strict", False, "exit with 2 when any slide is left without tiles")
    truth("overwrite", False, "start from scratch in a folder that was begun with other settings")


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parsed("data_prep.tile", arguments, define_flags, ABOUT, needed=("slides", "out"))
    if values is None:
        return 0
    given = values.flag_values_dict()
    settings = read_settings(given)
    everything = find_slides(values.slides)
    inputs, warnings = _inputs(given, everything)
    part = parse_share("--shard", values.shard)
    slides = in_part(everything, part)
    records = Records(values.out, "tile", "tiles.csv", COLUMNS)
    with records.claimed(part):
        records.use_settings(dataclasses.asdict(settings), overwrite=values.overwrite)
        for folder in (records.folder, *records.work.glob(f"{COORDS}*"), records.work / QC):
            tidy(folder)
        waiting = [slide for slide in slides if not records.is_done(slide, inputs[slide.slide_id].fingerprint())]
        replaced = sum(1 for slide in waiting if (row := records.read(slide.slide_id)) and not slide.is_as_in(row))
        if others := other_slides(Path(values.slides)):
            kinds = ", ".join(f"{count} {kind}" for kind, count in others.items())
            warnings.append(
                f"{values.slides}: {kinds} left out, which OpenSlide cannot read; convert them to pyramidal TIFF"
            )
        for warning in warnings:
            say(f"Warning: {warning}")
        say(_plan(slides, everything, waiting, replaced))
        rows = _run(waiting, records, settings, inputs, values.workers or len(os.sched_getaffinity(0)))
        table = records.write_table()
        here = {slide.slide_id for slide in slides}
        _report([row for row in table if row["slide"] in here], records)
        if any(row["status"] == FAILED for row in rows):
            return 1
        bad = any(row["status"] != OK for row in table if row["slide"] in here)
        return 2 if values.strict and (bad or warnings) else 0


def read_settings(given: Mapping[str, Any]) -> TileSettings:
    """The flags as settings. Raises ConfigError where they do not go together."""
    kinds = [kind for kind in KINDS if given[kind] not in ("", None)]
    if len(kinds) != 1:
        raise ConfigError(
            "name the scale of the tiles by one of --mpp (such as 0.5), --magnification (20), --level (0)"
        )
    kind = kinds[0]
    scales = [float(given["level"])] if kind == "level" else _numbers(kind, given[kind])
    # The finest first: small micrometres per pixel, but large magnifications.
    if scales != sorted(scales, reverse=kind == "magnification") or len(set(scales)) < len(scales):
        raise ConfigError(f"--{kind}={given[kind]}: name the finest scale first, and each once")
    if kind != "level" and given["step"]:
        raise ConfigError("--step goes with --level; otherwise use --overlap")
    if kind == "level" and given["overlap"]:
        raise ConfigError("--overlap goes with --mpp or --magnification; with --level use --step")
    if given["overlap"] >= given["tile"]:
        raise ConfigError(f"--overlap={given['overlap']} must be less than --tile={given['tile']}")
    if not 0 <= given["min-tissue"] <= 1:
        raise ConfigError(f"--min-tissue={given['min-tissue']:g} must be from 0 to 1")
    limits = {name: float(value) for name in LIMITS if (value := given[name.replace("_", "-")]) is not None}
    changed = {name: given[name] for name in SETTINGS_OF_SEGMENTATION if given[name] is not None}
    if changed.get("seg_level") is not None:
        changed.setdefault("seg_um", 0.0)
    return TileSettings(
        kind,
        tuple(scales),
        given["tile"],
        given["overlap"],
        (given["step"] or given["tile"]) if kind == "level" else 0,
        given["min-tissue"],
        checked(dataclasses.replace(preset(given["preset"]), **changed)),
        given["quality"] or bool(limits),
        limits,
    )


def _numbers(kind: str, text: str) -> list[float]:
    least, most = PLAUSIBLE_MPP if kind == "mpp" else PLAUSIBLE_MAGNIFICATION
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(least <= number <= most for number in numbers):
        raise ConfigError(f"--{kind}={text} must be numbers between {least:g} and {most:g}, with commas")
    return numbers


def _inputs(given: Mapping[str, Any], slides: Sequence[Slide]) -> tuple[dict[str, SlideInputs], list[str]]:
    """What tables and annotations say of each slide; warnings of names that are no slide's."""
    warnings: list[str] = []

    def table(flag: str, column: str, plausible: tuple[float, float]) -> dict[str, float]:
        if not given[flag]:
            return {}
        found, unknown = read_overrides(given[flag], column, plausible, list(slides))
        if unknown:
            warnings.append(f"{given[flag]} names {counted(len(unknown), 'unknown slide')}: {listed(unknown)}")
        return found

    def folder(flag: str) -> dict[str, Path]:
        if not given[flag]:
            return {}
        found = annotation_files(given[flag])
        unknown = sorted(found.keys() - {slide.slide_id for slide in slides})
        if len(unknown) == len(found):
            raise DataError(f"--{flag}={given[flag]}: names none of the slides, but {listed(unknown)}")
        if unknown:
            warnings.append(
                f"{given[flag]} has annotations of {counted(len(unknown), 'unknown slide')}: {listed(unknown)}"
            )
        return found

    mpp = table("mpp-table", "mpp", PLAUSIBLE_MPP)
    magnification = table("magnification-table", "magnification", PLAUSIBLE_MAGNIFICATION)
    roi, exclude, labels = folder("roi"), folder("exclude"), folder("labels")
    unknown = float("nan")
    return {
        slide.slide_id: SlideInputs(
            mpp.get(slide.slide_id, unknown),
            magnification.get(slide.slide_id, unknown),
            roi.get(slide.slide_id),
            exclude.get(slide.slide_id),
            labels.get(slide.slide_id),
            bool(roi),
            given["annotation-origin"],
        )
        for slide in slides
    }, warnings


def _plan(slides: Sequence[Slide], everything: Sequence[Slide], waiting: Sequence[Slide], replaced: int) -> str:
    sentence = f"{counted(len(slides), 'slide')}"
    if len(slides) < len(everything):
        sentence += f" of {len(everything)} in this part"
    done = len(slides) - len(waiting)
    if done:
        sentence += f", {done} done before"
    if replaced:
        sentence += f", {replaced} replaced since they were tiled"
    return sentence


def _run(
    waiting: Sequence[Slide], records: Records, settings: TileSettings, inputs: dict[str, SlideInputs], workers: int
) -> list[Row]:
    processes = max(1, min(workers, len(waiting)))
    unit = functools.partial(_one, records, settings, max(1, workers // processes))
    items = [(slide, inputs[slide.slide_id]) for slide in waiting]
    rows = []
    with progress("slides", len(waiting)) as advance:
        for row in run_all(items, unit, functools.partial(_crashed, records), processes):
            rows.append(row)
            advance(row["slide"])
    return rows


def _one(records: Records, settings: TileSettings, threads: int, item: tuple[Slide, SlideInputs]) -> Row:
    cv2.setNumThreads(1)  # the slides are what goes side by side
    return tile_slide(records, settings, threads, *item)


def _crashed(records: Records, item: tuple[Slide, SlideInputs], reason: str) -> Row:
    slide, own = item
    return records.write(slide, {"status": FAILED, "reason": reason}, own.fingerprint(), 0.0)


def _report(rows: Sequence[Row], records: Records) -> None:
    tiled = [row for row in rows if row["status"] == OK]
    tiles = sum(row["tiles"] for row in tiled)
    say(
        f"{counted(len(tiled), 'slide')} with {counted(tiles, 'tile')}: {records.table}, {records.work / COORDS}, {records.work / QC}"
    )
    if dropped := sum(row.get("dropped", 0) for row in rows):
        say(f"{counted(dropped, 'tile')} dropped by the limits of quality: pictures in {records.work / QC}")
    if sentence := physical_sizes(tiled):
        say(sentence)
    if left_out := [row["slide"] for row in rows if row.get("annotations_left_out")]:
        say(
            f"Annotations of {counted(len(left_out), 'slide')} hold more than areas; see annotations_left_out: {listed(left_out)}"
        )
    dark = [row["slide"] for row in tiled if row["background"] == "dark"]
    if dark:
        say(f"{counted(len(dark), 'slide')} with a dark background, found by brightness: {listed(dark)}")
    for status in sorted({row["status"] for row in rows} - {OK}):
        bad = [row for row in rows if row["status"] == status]
        say(f"{'without tiles' if status == EMPTY else status}: {counted(len(bad), 'slide')}")
        for row in bad[:_SHOWN]:
            say(f"  {row['slide']}: {row['reason']}")
        if len(bad) > _SHOWN:
            say(f"  and {len(bad) - _SHOWN} more, in {records.table.name}")


def physical_sizes(rows: Sequence[Row]) -> str:
    """A sentence where the tiles of a cohort differ in their physical size, or it is not known of all; else nothing."""
    sizes = Counter(f"{float(row['tile_um']):.0f} um" if row["tile_um"] != "" else "an unknown size" for row in rows)
    if len(sizes) < 2:
        return ""
    shares = ", ".join(f"{count / len(rows):.0%} at {size}" for size, count in sizes.most_common())
    return (
        f"Warning: tiles differ in their physical size: {shares} of the slides; a model would see tissue at several "
        "scales, so tile by --mpp"
    )


if __name__ == "__main__":
    run_command(main)
