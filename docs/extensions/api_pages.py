"""The API reference: a page for each layer of the package, generated from the docstrings of its modules.

Docstrings here are plain text: paragraphs, names in single backticks, `name: meaning` on a line of its own, indented code. The handler
below makes reStructuredText of that, so that `[N, *F]` is no emphasis and a list of fields is no paragraph.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# The layers of `docs/design.md`, from the top down: (page, heading, modules or packages, what it is).
LAYERS: list[tuple[str, str, list[str], str]] = [
    ("api", "The front door", ["api"], "What `import mil_jax as mj` offers: `mj.fit`, `mj.load`, a run."),
    ("reports", "Reports", ["reports"], "What people look at: summaries, evaluations, comparisons, figures."),
    ("inference", "Inference", ["inference"], "Trained runs, external cohorts, and which model may score whom."),
    ("experiment", "Experiment", ["experiment"], "From a config to data, targets, phases and a plan, and to a run."),
    (
        "engine",
        "Engine",
        ["engine"],
        "Many small models on one cohort: programs, order, mesh, checkpoints, early stopping.",
    ),
    (
        "run_folder",
        "Run folder and profiling",
        ["run_folder", "profiling"],
        "What a run leaves, and what it will cost.",
    ),
    ("strategies", "Strategies", ["strategies"], "How a model is trained: one step, as pure functions."),
    ("tasks", "Tasks and metrics", ["tasks"], "What is predicted: targets, loss, probabilities, metrics."),
    ("aggregators", "Aggregators", ["aggregators"], "From one bag to one prediction; one file for each method."),
    ("encoders", "Encoders", ["encoders"], "From one tile to one feature vector."),
    ("layers", "Layers", ["layers"], "Functions that methods share; every one takes the mask."),
    ("data", "Data", ["data"], "From files to bags on a device: shards, cohort, splits, loading, features, data sets."),
    ("interop", "Foreign formats", ["interop"], "Feature folders, published checkpoints, slides, annotations."),
    ("basis", "Bags, errors, files", ["bags", "errors", "files", "machine"], "What every layer may use."),
]
FIELD = re.compile(r"(\w+(?:, \w+)*): (\S.*)")
_PACKAGE = Path(__file__).resolve().parents[2] / "mil_jax"


def module_names(name: str) -> list[str]:
    """The modules in `mil_jax/name` (a package, then what is in it) or the module itself; nothing where it does not exist."""
    path = _PACKAGE / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    dotted = [file.relative_to(_PACKAGE.parent).with_suffix("").parts for file in files if file.is_file()]
    return sorted(".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in dotted)


def write_pages(app: Sphinx) -> None:
    """Writes `reference/generated/LAYER.rst`, where it differs from what is there."""
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(exist_ok=True)
    for page, heading, packages, about in LAYERS:
        lines = [heading, "=" * len(heading), "", about, ""]
        for module in (module for package in packages for module in module_names(package)):
            lines += [
                module,
                "-" * len(module),
                "",
                f".. automodule:: {module}",
                "   :members:",
                "   :ignore-module-all:",
                "",
            ]
        text, file = "\n".join(lines), folder / f"{page}.rst"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def as_restructured_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrites a docstring in place."""
    written: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith(" ")
        field = FIELD.fullmatch(line)
        if indented and not literal and not (written and written[-1].startswith("   ")):
            written += ["", "::", ""]
            literal = True
        elif literal and line and not indented:
            written.append("")
            literal = False
        if literal:
            written.append(f"   {line}" if line else "")
        elif field:
            names = ", ".join(f"**{each}**" for each in field[1].split(", "))
            written += ["", f"- {names}: {_escaped(field[2])}"]
        elif written and written[-1].startswith(("- ", "  ")) and line:
            written.append(f"  {_escaped(line.strip())}")
        else:
            written.append(_escaped(line))
    lines[:] = [*written, ""]


def is_noise(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what every named tuple says of its fields; the class's docstring says more."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def _escaped(line: str) -> str:
    """The line with `*`, `|` and trailing `_` as characters, outside of backticks."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(piece if piece.startswith("`") else re.sub(r"([*|]|_(?=\W|$))", r"\\\1", piece) for piece in pieces)


def setup(app: Sphinx) -> dict[str, Any]:
    """Generates the pages before sources are read."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", is_noise)
    app.connect("autodoc-process-docstring", as_restructured_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
