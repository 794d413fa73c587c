"""Compares methods whose run folders are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mil_jax.cli.console import console, say
from mil_jax.files import atomic_folder
from mil_jax.reports.comparison.load import compare_methods, read_method
from mil_jax.reports.comparison.write import MARKER, console_report, write_comparison


def run(named: Mapping[str, Sequence[Path]], out: str, *, overwrite: bool, mixed: bool) -> int:
    """Writes a comparison into `out`, or below the first run; returns the command's exit code. mixed: as in `compare_methods`."""
    methods = [read_method(name, [*paths]) for name, paths in named.items()]
    target = Path(out or next(iter(named.values()))[0] / "comparison")
    with atomic_folder(target, MARKER, overwrite, "a comparison") as folder:
        with console.status("resampling patients"):
            comparison = compare_methods(methods, mixed=mixed)
        content = write_comparison(folder, comparison)
    console.print(console_report(content), soft_wrap=False)
    say(f"Everything is in {target}: summary.md, differences.csv, {MARKER}.")
    return 0
