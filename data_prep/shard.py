"""Command: a folder of feature files (of data_prep.encode, CLAM, TRIDENT, STAMP, plain) to a folder of shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.cli import parsed
from mil_jax.cli.console import console, run_command, say
from mil_jax.data.features.checks import NONFINITE
from mil_jax.data.features.multi_scale import joined
from mil_jax.data.shards.append import additions
from mil_jax.data.shards.convert import Progress as ConversionProgress
from mil_jax.data.shards.convert import convert, storage_ladder
from mil_jax.data.shards.index import INDEX_FILE
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.verify import check_shards
from mil_jax.data.shards.writer import ShardWriteReport
from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, ShardError
from mil_jax.interop.feature_files import Layout, counted
from mil_jax.interop.feature_folders import recognise

ABOUT = """Writes the features of slides as shards: padded bags in TFRecord files, which training reads.

usage: python -m data_prep.shard --features DIR --out DIR [settings]

examples:
  python -m data_prep.shard --features features/ --out shards/ --encoder-name uni_v1 --dtype float16
  python -m data_prep.shard --features work/features --out shards/ --add             slides that came since
  python -m data_prep.shard --join work/features,work/features_1 --out shards/       two magnifications, for DSMIL
  python -m data_prep.shard --check --out shards/                                    read everything again
  python -m data_prep.inspect --shards shards/                                       what they hold"""
_SHOWN = 20


def define_flags(values: flags.FlagValues) -> None:
    """The command's settings."""
    flags.DEFINE_string("features", "", "folder of feature files, one per slide", flag_values=values)
    flags.DEFINE_string(
        "join",
        "",
        "instead of --features: HIGH,LOW, folders of features at two magnifications, which are put side by side",
        flag_values=values,
    )
    flags.DEFINE_bool("recursive", False, "also read feature files in the subfolders of --features", flag_values=values)
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
    flags.DEFINE_bool(
        "add",
        False,
        "add the slides that an existing folder of shards lacks; those in it stay as they are",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "check",
        False,
        "read the shards again, every byte, and compare them with the features where these are named",
        flag_values=values,
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parsed("data_prep.shard", arguments, define_flags, ABOUT, needed=("out",))
    if values is None:
        return 0
    if values.add and values.overwrite:
        raise ConfigError("--add keeps what is there and --overwrite replaces it: choose one")
    sources = _sources(values)
    if sources is None and not values.check:
        raise ConfigError("--features is missing; --help shows an example")
    if sources is not None:
        say(sources.sentence)
        exists = (Path(values.out) / INDEX_FILE).exists()
        if values.add and exists:
            _add(values, sources)
        elif not (values.check and exists and not values.overwrite):
            _convert(values, sources)
    if values.check:
        _check(values.out, sources)
    return 0


def _sources(values: flags.FlagValues) -> Layout | None:
    if not values.join:
        return recognise(values.features, values.recursive) if values.features else None
    folders = [folder.strip() for folder in values.join.split(",")]
    if values.features or len(folders) != 2:
        raise ConfigError(f"--join={values.join} must be two folders with a comma, HIGH,LOW, in place of --features")
    return joined(*map(recognise, folders))


def _add(values: flags.FlagValues, sources: Layout) -> None:
    shards = Shards.open(values.out)
    found = additions(shards, sources.files)
    if found.changed:
        say(
            f"Warning: the features of {counted(len(found.changed), 'slide')} have changed since ({listed(found.changed)}); in the shards "
            "they stay as they were, --overwrite rewrites everything"
        )
    if found.gone:
        say(f"{counted(len(found.gone), 'slide')} in the shards have no features now and stay: {listed(found.gone)}")
    if not found.new:
        say(f"Nothing to add: {values.out} has all {counted(len(shards), 'slide')}")
        return
    say(f"Adding {counted(len(found.new), 'slide')} to the {len(shards)} in {values.out}")
    _convert(values, dataclasses.replace(sources, files=found.new), shards)


def _check(folder: str, sources: Layout | None) -> None:
    shards = Shards.open(folder)
    with _bar("Reading shards", len(shards)) as progress:
        wrong = check_shards(shards, sources, progress)
    if not wrong:
        compared = "" if sources is None else ", and the same as their sources"
        say(
            f"Checked {counted(len(shards), 'slide')}, {counted(int(shards.num_instances.sum()), 'instance')} in {folder}: whole, finite"
            + compared
        )
        return
    for sentence in wrong[1:_SHOWN]:
        say(f"Also: {sentence}")
    more = f" ({len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
    raise ShardError(f"{wrong[0]}{more}")


def _convert(values: flags.FlagValues, layout: Layout, add_to: Shards | None = None) -> None:
    ladder = None if values.regions else storage_ladder(layout)
    if ladder is not None:
        lengths = ", ".join(map(str, ladder.lengths))
        say(f"Padded lengths: {lengths}; {ladder.waste:.1%} of the rows are padding")
    with _bar("Writing shards", len(layout.files)) as progress:
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
            add_to=add_to,
            progress=progress,
        )
    _describe(report)


@contextmanager
def _bar(what: str, total: int) -> Iterator[ConversionProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, _, slide: bar.update(task, completed=done, description=slide or what)


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
    run_command(main)
