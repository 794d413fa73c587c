"""Command: a folder of feature files (CLAM, TRIDENT, STAMP, plain) to a folder of shards."""

from __future__ import annotations

import signal
import sys

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mil_jax.console import console, run_command, say
from mil_jax.data.conversion import convert, storage_ladder
from mil_jax.data.feature_checks import NONFINITE
from mil_jax.data.shard_writer import ShardWriteReport
from mil_jax.errors import ConfigError
from mil_jax.interop.feature_files import counted
from mil_jax.interop.feature_folders import recognise

EXAMPLE = """usage: python -m data_prep.shard --features DIR --out DIR [settings]

example:
  python -m data_prep.shard --features features/ --out shards/ --encoder-name uni_v1 --dtype float16
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's settings."""
    flags.DEFINE_string("features", "", "folder of feature files, one per slide", flag_values=values)
    flags.DEFINE_string("out", "", "folder of shards to write", flag_values=values)
    flags.DEFINE_string("encoder-name", "", "encoder to record where the files do not name theirs", flag_values=values)
    flags.DEFINE_enum("dtype", "source", ["source", "float16", "float32"], "type to store", flag_values=values)
    flags.DEFINE_enum("nonfinite", "error", NONFINITE, "what to do with rows that are not finite", flag_values=values)
    flags.DEFINE_integer(
        "neighbors",
        0,
        "store so many nearest tiles of each tile, for methods on graphs (Patch-GCN: 8)",
        lower_bound=0,
        upper_bound=64,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "regions",
        0,
        "store square regions of so many tiles a side as the instances, for HIPT (16: 4,096 pixels of tiles of 256)",
        lower_bound=0,
        upper_bound=64,
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "replace an existing folder of shards", flag_values=values)
    flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)


def entry_point() -> None:
    """Runs the command and exits."""
    # An exit, unlike the bare signal, removes what is half-written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_command(main)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(["data_prep.shard", *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(f"{error}; --help lists the settings") from error
    if values.help:
        say(EXAMPLE + "\n" + values.get_help())
        return 0
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}; settings are given as --name=value")
    for name in ("features", "out"):
        if not values[name].value:
            raise ConfigError(f"--{name} is missing; --help shows an example")
    _convert(values)
    return 0


def _convert(values: flags.FlagValues) -> None:
    layout = recognise(values.features)
    say(layout.sentence)
    ladder = None if values.regions else storage_ladder(layout)
    if ladder is not None:
        lengths = ", ".join(map(str, ladder.lengths))
        say(f"Padded lengths: {lengths}; {ladder.waste:.1%} of the rows are padding")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Writing shards", total=len(layout.files))
        report = convert(
            layout,
            values.out,
            dtype=None if values.dtype == "source" else values.dtype,
            nonfinite=values.nonfinite,
            encoder_name=str(values["encoder-name"].value),
            ladder=ladder,
            overwrite=values.overwrite,
            num_neighbors=values.neighbors,
            regions=values.regions,
            progress=lambda done, total, slide: bar.update(task, completed=done, description=slide or "Writing shards"),
        )
    _describe(report)


def _describe(report: ShardWriteReport) -> None:
    seen = report.features
    say(
        f"Wrote {counted(report.num_slides, 'slide')}, {counted(report.num_instances, 'instance')}, "
        f"{report.feature_bytes / 1e6:.1f} MB of features to {report.folder}"
    )
    say(
        f"Features: width {seen['width']}, values {seen['min']:.4g} to {seen['max']:.4g}, "
        f"norm {seen['norm_root_mean_square']:.4g}, spread {seen['spread']:.2f}, "
        f"{counted(len(seen['constant_columns']), 'constant column')}, "
        f"{counted(seen['duplicate_rows'], 'duplicate row')}, {counted(seen['near_zero_rows'], 'near-zero row')}"
    )
    if report.largest_relative_error is not None:
        say(f"Largest relative error of the cast: {report.largest_relative_error:.2g}")
    for slide, reason in report.excluded:
        say(f"Excluded: {slide} ({reason})")
    for warning in report.warnings:
        say(f"Warning: {warning}")


if __name__ == "__main__":
    entry_point()
