"""Writes docs/settings.md, the page of all settings, from `mil_jax/settings.py` and the fields of the aggregators.

    python scripts/settings_table.py [--check]

With --check nothing is written: exit 1 when the page is not what would be written.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mil_jax import aggregators
from mil_jax.aggregators import reembedding
from mil_jax.settings import RENAMED, RENAMED_VALUES, SETTINGS
from mil_jax.strategies import registry

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"

HEAD = """# Settings

Every setting is given on the command line as `--config.NAME=VALUE`, or set in a config file. A name that does not exist is an
error that suggests the nearest. Lists are text with commas (`--config.data.classes=LUAD,LUSC`), truth values `true` or `false`.

The defaults here are those of `mil_jax/settings.py`; a config file such as `configs/abmil.py` sets what its method needs, and
every run writes all values to `config.json` in its run folder. `--show-config` lists the values that differ from these defaults, and
whether a config file, its demo part or the command line sets them. This page is written by `python scripts/settings_table.py`.
"""

GROUPS = {
    "": "The run",
    "data": "Data",
    "reembed": "Re-embedding",
    "strategy": "Strategy",
    "splits": "Splits",
    "task": "Task",
    "optimizer": "Optimiser",
    "train": "Training",
    "distributed": "Several processes",
}


def page() -> str:
    """The page as it should be."""
    groups: dict[str, list[list[str]]] = {group: [] for group in GROUPS}
    for name, setting in SETTINGS.items():
        group = name.split(".")[0] if "." in name else ""
        groups[group].append([f"`{name}`", _shown(setting.default), setting.meaning])
    parts = [HEAD]
    for group, rows in groups.items():
        parts.append(f"## {GROUPS[group]}\n\n{_table(['setting', 'default', 'meaning'], rows)}\n")
    parts.append("## Aggregators\n\n`aggregator.name` chooses the method; its other settings, with their defaults:\n")
    for name in aggregators.names():
        fields = aggregators.default_fields(name).items()
        rows = [[f"`aggregator.{field}`", _shown(default)] for field, default in fields]
        parts.append(f"### {name}\n\n{_table(['setting', 'default'], rows)}\n")
    parts.append("## Re-embeddings\n\nSettings that `reembed.name` brings with it (see `docs/methods/rrt.md`):\n")
    for name in reembedding.REEMBEDDINGS:
        fields = reembedding.default_fields(name).items()
        rows = [[f"`reembed.{field}`", _shown(default)] for field, default in fields]
        parts.append(f"### {name}\n\n{_table(['setting', 'default'], rows)}\n")
    parts.append("## Strategies\n\nSettings that `strategy.name` brings with it (see `docs/methods/`):\n")
    for name in registry.SETTINGS:
        rows = [[f"`strategy.{field}`", _shown(default)] for field, default in registry.default_fields(name).items()]
        parts.append(f"### {name}\n\n{_table(['setting', 'default'], rows)}\n")
    rows = [[f"`{old}`", f"`{new}`"] for old, new in RENAMED.items()]
    rows += [
        [f"`{name}={old}`", f"`{name}={new}`"] for name, values in RENAMED_VALUES.items() for old, new in values.items()
    ]
    parts.append(f"## Earlier names\n\nThey work until version 1.0:\n\n{_table(['earlier', 'now'], rows)}\n")
    return "\n".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "" if value == "" or value is dataclasses.MISSING else f"`{value}`"


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/settings.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    arguments = parser.parse_args()
    wanted = page()
    if not arguments.check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not up to date; run: python scripts/settings_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
