"""What the package as a whole promises: light imports, imports in one direction, nothing that ties it to one machine."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mil_jax"

PICTURE = re.compile(r"## Layers.*?```\n(.*?)```", re.DOTALL)


def layers() -> list[list[str]]:
    """The files and folders of each line of the picture in docs/design.md, from the top down."""
    picture = PICTURE.search((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert picture
    return [line.split("  ")[0].split() for line in picture[1].splitlines()]


NOT_AT_IMPORT = {"torch", "tensorflow", "tensorflow_datasets"}
NOT_FOR_THE_PACKAGE = {"benchmarks", "configs", "data_prep", "scripts", "tests"}
TEXT_FILES = (".py", ".md", ".toml", ".json", ".csv")


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
PARTS = {name.split(".")[1] for name in MODULES}


def part_of(name: str) -> str:
    """`mil_jax.data.shards.reader.Shards` -> `data`; `mil_jax` and `mil_jax.__version__` -> `__init__`."""
    part = f"{name}.".split(".")[1]
    return part if part in PARTS else "__init__"


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(absolute name of a module, line) of every import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            names = [alias.name for alias in node.names]
            inside = node.module == "mil_jax"
            yield from ((f"mil_jax.{name}" if inside else str(node.module), node.lineno) for name in names)


def loaded_after(code: str) -> tuple[set[str], float]:
    """The top-level modules that a fresh interpreter has loaded after `code`, and the seconds of processor time that it took."""
    report = (
        "import sys, time; begun = time.process_time()\n"
        f"{code}\n"
        "seconds = time.process_time() - begun\n"
        "import json; print(json.dumps([sorted({name.partition('.')[0] for name in sys.modules}), seconds]))"
    )
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    names, seconds = json.loads(run.stdout.splitlines()[-1])
    return set(names), seconds


def test_importing_the_package_takes_at_most_a_twentieth_of_a_second():
    """Of processor time, the best of five: others may use the machine."""
    runs = [loaded_after("import mil_jax") for _ in range(5)]
    assert "mil_jax" in runs[0][0]
    assert not {"jax", "flax", "numpy", "pandas"} & runs[0][0]
    assert min(seconds for _, seconds in runs) <= 0.05


def test_training_and_every_other_module_load_neither_torch_nor_tensorflow_when_imported():
    assert "mil_jax.train" in MODULES
    names, _ = loaded_after("\n".join(f"import {name.removesuffix('.__init__')}" for name in MODULES))
    assert {"jax", "flax", "pandas"} <= names
    assert not NOT_AT_IMPORT & names


LEVELS = {part: level for level, parts in enumerate(layers()) for part in parts}


def test_the_picture_of_the_house_names_every_part():
    assert set(LEVELS) == PARTS - {"__init__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    own = part_of(module)
    for name, line in imported(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        package, other = name.split(".")[0], part_of(name)
        assert package not in NOT_FOR_THE_PACKAGE, f"line {line}: the package does not import {package}"
        if package == "mil_jax" and "__init__" not in (own, other):
            assert LEVELS[other] >= LEVELS[own], f"line {line}: {own} imports {name}, which stands above it"


def modules_below(*packages: str) -> dict[str, Path]:
    """{dotted name: file}, packages by their own name."""
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def test_no_two_files_import_each_other_directly_or_by_way_of_others():
    """Imports that are for types alone, or inside functions, count."""
    files = modules_below("mil_jax", "data_prep")
    assert len(files) > 200
    after: dict[str, set[str]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name for name, _ in imported(tree)}
        names |= {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        after[module] = {name for name in names & set(files) if not module.startswith(f"{name}.")} - {module}
    try:
        list(graphlib.TopologicalSorter(after).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_no_file_is_longer_than_400_lines():
    files = modules_below("mil_jax", "data_prep")
    assert [name for name, path in files.items() if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def project_files() -> Iterator[Path]:
    """Text files that belong to the project."""
    folders = ("mil_jax", "configs", "data_prep", "scripts", "benchmarks", "docs", "tests", ".ci")
    assert all((ROOT / folder).is_dir() for folder in folders)
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    for path in [*found, *ROOT.iterdir()]:
        if path.is_file() and (path.suffix in TEXT_FILES or path.parent.name == ".ci"):
            yield path


def test_nothing_names_a_folder_of_one_machine():
    machine = re.compile(r"(?<![\w.~])/(?:" + "|".join(("work", "home", "root", "Users", "tmp/v", "mnt")) + r")/")
    named = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in project_files()
        for found in [machine.search(path.read_text(encoding="utf-8"))]
        if found
    ]
    assert not named


def test_the_folder_of_optional_data_is_named_by_tests_and_benchmarks_only():
    readers = {
        path.relative_to(ROOT).parts[0]
        for path in project_files()
        if "MIL_JAX_" + "SHARED" in path.read_text(encoding="utf-8")
    }
    assert readers == {"tests", "benchmarks", ".ci"}


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.name
)
def test_links_between_pages_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    named = re.findall(r"`(configs/\w+\.py|scripts/\w+\.py|mil_jax/[\w/]+\.py)`", page.read_text(encoding="utf-8"))
    made = ("auto_tutorials/", "reference/generated/")  # by the build of the site, which refuses links to nowhere
    missing = [link for link in links if not link.startswith(made) and not (page.parent / link).exists()]
    missing += [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing
