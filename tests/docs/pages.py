"""What the pages of the documentation say: their commands, their Python, the files that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("auto_tutorials", "generated")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not set(GENERATED) & set(page.parts)),
]
COMMAND = re.compile(r"^(mil-jax|python -m (?:mil_jax|data_prep|benchmarks)\.|python scripts/)")
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """page: relative to the root. module: `mil_jax.train`, or `scripts/x.py`. arguments: as the shell would split them."""

    page: str
    module: str
    arguments: list[str]


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages ("" for none)."""
    return [block for _, language, block in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def lines(text: str) -> list[str]:
    """The commands in a shell text: continued lines joined, `a && b` apart, `srun` and comments left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    single = [part.strip() for line in joined.splitlines() for part in re.split(r"&&|\|\|", line)]
    return [re.sub(r"^srun .*?(?=mil-jax)", "", line) for line in single if line and not line.startswith("#")]


def commands(page: Path) -> list[Command]:
    """Our commands in a page's shell blocks, and in its lines where they are given with arguments."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text))
    found = [line for block in blocks(page, "", "bash", "console") for line in lines(block)]
    found += [span for span in inline if " --" in span]
    return [command_of(line, page) for line in found if COMMAND.match(line) and "NAME " not in line]


def command_of(line: str, page: Path = ROOT / "README.md") -> Command:
    """`mil-jax train --x` and `python -m mil_jax.train --x` are the same."""
    words = shlex.split(line)
    name = str(page.relative_to(ROOT))
    if words[0] == "mil-jax":
        return Command(name, f"mil_jax.{words[1]}", words[2:])
    if words[1] == "-m":
        return Command(name, words[2], words[3:])
    return Command(name, words[1], words[2:])
