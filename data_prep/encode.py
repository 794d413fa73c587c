"""Command: the tiles of slides to their features, one file per slide that CLAM's, TRIDENT's and this library's readers accept.

One slide is the unit of work (`slide_features.py`): it goes on after being killed, and many hosts share one folder, by `--shard i/n` or
on a Ray cluster. Tiles are read and decoded while those before them are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from data_prep.cli import parsed, progress
from data_prep.features.encode_slide import COLUMNS, EncodeSettings, SlideEncoder, inputs_of, outputs, tiled_slides
from data_prep.features.encoder import PRECISIONS
from data_prep.features.summary import summary_lines
from data_prep.jobs import FAILED, FINAL, Records, Row, Slide, in_part
from mil_jax.cli.arguments import parse_share
from mil_jax.cli.console import run_command, say
from mil_jax.encoders.registry import ARCHITECTURES, ENCODERS, INTERPOLATIONS, POOLS
from mil_jax.encoders.weights import RANDOM, identity
from mil_jax.engine.runtime import keep_freed_memory
from mil_jax.errors import ConfigError
from mil_jax.files import id_file, tidy
from mil_jax.interop.feature_files import counted
from mil_jax.machine import usable_cores

ABOUT = f"""Encodes the tiles that data_prep.tile has found.

usage: python -m data_prep.encode --work WORK --encoder NAME --weights FILE [settings]

examples:
  python -m data_prep.encode --work work/ --encoder uni_v1 --weights pytorch_model.bin
  python -m data_prep.encode --work work/ --encoder uni_v1 --weights pytorch_model.bin --shard $SLURM_ARRAY_TASK_ID/10
  python -m data_prep.encode --work work/ --encoder resnet50_trunc --weights random       to try things out
  python -m data_prep.encode --work work/ --encoder vit_small_patch16 --weights mine.pth --input-size 224 \\
      --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --pool class

Encoders: {", ".join(ENCODERS)}.
Architectures, for weights of your own: {", ".join(ARCHITECTURES)}.

WORK gets features/SLIDE.h5 and features.csv. A command that was stopped goes on when it is started again."""

ENGINES = ("local", "ray")
OWN = ("mean", "std", "input-size", "pool")
_SHOWN = 5


def define_flags(values: flags.FlagValues) -> None:
    """The command's settings."""

    def text(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    def whole(name: str, default: int, meaning: str, least: int = 0) -> None:
        flags.DEFINE_integer(name, default, meaning, lower_bound=least, flag_values=values)

    def choice(name: str, default: str, of: Sequence[str], meaning: str) -> None:
        flags.DEFINE_enum(name, default, list(of), meaning, flag_values=values)

    def truth(name: str, meaning: str) -> None:
        flags.DEFINE_bool(name, False, meaning, flag_values=values)

    text("work", "", "folder that data_prep.tile has written to")
    text("encoder", "", "name of the encoder or architecture; they are listed above")
    text(
        "weights", "", f"file of its weights (PyTorch, safetensors), or {RANDOM!r}, which is recorded with the features"
    )
    text("slides", "", "folder of the slides, where they have moved since they were tiled")
    text("out", "", "folder in WORK to write to; default: features, and features_1 for --scale 1")
    whole("scale", 0, "which of several scales of tiles: 0 for the finest, 1 for the next coarser")
    whole("batch-size", 64, "tiles encoded together on one device", least=1)
    choice("precision", PRECISIONS[0], PRECISIONS, "of weights and arithmetic")
    choice("dtype", "float16", ("float16", "float32"), "type to store")
    whole("threads", 0, "threads that read tiles; 0: one per core")
    text("shard", "", "i/n: do only the i-th of n parts, for job arrays")
    choice(
        "engine", ENGINES[0], ENGINES, "ray: on a Ray cluster, whose machines all see WORK and the slides (extra `ray`)"
    )
    text("ray-address", "", "with --engine ray: address of the cluster; empty: this machine")
    whole("workers", 1, "with --engine ray: encoders side by side", least=1)
    text("mean", "", "of the three channels, for an architecture with weights of your own")
    text("std", "", "the same of the standard deviation")
    whole("input-size", 0, "edge in pixels of what the architecture reads; tiles are resized to it")
    text("pool", "", f"what its vector is: {', '.join(POOLS)}")
    choice("interpolation", "", ("", *INTERPOLATIONS), "how tiles are resized for an architecture; default: bilinear")
    truth(
        "strict",
        "exit with 2 when any slide is left without features, or its tiles are unlike what the encoder expects",
    )
    truth("overwrite", "start from scratch in a folder that was begun with other settings")


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parsed("data_prep.encode", arguments, define_flags, ABOUT, needed=("work", "encoder"))
    if values is None:
        return 0
    keep_freed_memory()
    settings = read_settings(values)
    everything, untiled = tiled_slides(settings.work, settings.scale, values.slides)
    part = parse_share("--shard", values.shard)
    slides = in_part(everything, part)
    records = Records(settings.work, settings.out, f"{settings.out}.csv", COLUMNS)
    with records.claimed(part):
        records.use_settings(settings.recorded(), overwrite=values.overwrite)
        for folder in (records.folder, outputs(settings)):
            tidy(folder)
        waiting = [slide for slide in slides if not _is_done(records, settings, slide)]
        say(_plan(slides, everything, waiting, untiled))
        if settings.weights == RANDOM:
            say("Warning: random weights: these features only serve to try things out; it is recorded with them")
        rows = _run(waiting, records, settings, values)
        here = {slide.slide_id for slide in slides}
        table = [row for row in records.write_table() if row["slide"] in here]
        warnings = _report(table, records, settings)
        if any(row["status"] == FAILED for row in rows):
            return 1
        return 2 if values.strict and (warnings or any(row["status"] not in FINAL for row in table)) else 0


def read_settings(values: flags.FlagValues) -> EncodeSettings:
    """The flags as settings. Raises ConfigError where they do not go together, and for an unknown encoder."""
    name = values.encoder
    own: dict[str, Any] = {flag: values[flag].value for flag in OWN}
    batch_size: Any = values["batch-size"].value
    if name in ARCHITECTURES:
        if missing := [flag for flag in OWN if not own[flag]]:
            raise ConfigError(
                f"{name} is an architecture, whose preprocessing only you know: give --{' and --'.join(missing)} "
                f"(named encoders have theirs: {', '.join(ENCODERS)})"
            )
    elif given := [flag for flag in (*OWN, "interpolation") if values[flag].value]:
        raise ConfigError(f"--{given[0]} belongs to {name}'s definition; leave it out, or name an architecture instead")
    out = values.out or ("features" if values.scale == 0 else f"features_{values.scale}")
    if "/" in out or out.startswith("."):
        raise ConfigError(f"--out={out} must be the name of a folder in --work")
    settings = EncodeSettings(
        work=values.work,
        encoder=name,
        weights=values.weights,
        weights_identity="",
        out=out,
        scale=values.scale,
        batch_size=batch_size,
        precision=values.precision,
        dtype=values.dtype,
        threads=values.threads or usable_cores(),
        mean=_three("mean", own["mean"]),
        std=_three("std", own["std"]),
        input_size=own["input-size"],
        pool=own["pool"],
        interpolation=values.interpolation,
    )
    settings.tile_encoder()  # what cannot be built is said now
    return settings.with_identity(identity)


def _three(name: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (0.0,)
    if len(numbers) not in (0, 3) or (name == "std" and any(number <= 0 for number in numbers)):
        raise ConfigError(f"--{name}={text} must be three {'positive ' if name == 'std' else ''}numbers with commas")
    return numbers


def _is_done(records: Records, settings: EncodeSettings, slide: Slide) -> bool:
    path = id_file(outputs(settings), slide.slide_id, ".h5")
    return path.is_file() and records.is_done(slide, inputs_of(settings, slide))


def _plan(slides: Sequence[Slide], everything: Sequence[Slide], waiting: Sequence[Slide], untiled: int) -> str:
    sentence = f"{counted(len(slides), 'slide')} with tiles"
    if len(slides) < len(everything):
        sentence += f" of {len(everything)} in this part"
    if untiled:
        sentence += f", {untiled} without any"
    if done := len(slides) - len(waiting):
        sentence += f", {done} done before"
    return sentence


def _run(waiting: Sequence[Slide], records: Records, settings: EncodeSettings, values: flags.FlagValues) -> list[Row]:
    if not waiting:
        return []
    rows = []
    with progress("slides", len(waiting)) as advance:
        for row in _rows(waiting, records, settings, values):
            rows.append(row)
            advance(row["slide"])
    return rows


def _rows(
    waiting: Sequence[Slide], records: Records, settings: EncodeSettings, values: flags.FlagValues
) -> Iterator[Row]:
    if values.engine == "ray":
        from data_prep.features.ray_backend import run_on_ray

        address: Any = values["ray-address"].value
        yield from run_on_ray(waiting, records, settings, values.workers, address)
    else:
        yield from SlideEncoder(records, settings).run(waiting)


def _report(rows: Sequence[Row], records: Records, settings: EncodeSettings) -> list[str]:
    lines, warnings = summary_lines(rows, settings.tile_encoder())
    say(f"{records.table}, {outputs(settings)}: {lines[0]}")
    for line in lines[1:]:
        say(line)
    for warning in warnings:
        say(f"Warning: {warning}")
    for status in sorted({row["status"] for row in rows} - set(FINAL)):
        bad = [row for row in rows if row["status"] == status]
        say(f"{counted(len(bad), 'slide')} {status}:")
        for row in bad[:_SHOWN]:
            say(f"  {row['slide']}: {row['reason']}")
        if len(bad) > _SHOWN:
            say(f"  and {len(bad) - _SHOWN} more, in {records.table.name}")
    return warnings


if __name__ == "__main__":
    run_command(main)
