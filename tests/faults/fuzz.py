"""Damages files of every kind that is read, at random, and reads them: each case ends well, or in one sentence of a UserError.

    python -m tests.faults.fuzz [--seed 0] [--cases 2000] [--kind NAME]      all kinds in turn
    python -m tests.faults.fuzz --seed 7 --case 123                          one case again, in this process, with its traceback

A case is a function of its seed and number: a kind of file, a whole example of it, and one to three mutations. Each is read in a process of
its own with limits of memory and time; anything but success or one sentence (another exception, a crash, a hang, too much memory) is
printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import pandas as pd

from data_prep.jobs import SlideError
from data_prep.slides.annotations import read_outlines
from data_prep.tiles.coordinates import Coordinates, read_coordinates, write_coordinates
from data_prep.tiles.grid import Tiling
from mil_jax.data.cohort.cohort import CohortSettings, build_cohort
from mil_jax.data.cohort.instance_labels import read_instance_labels
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.verify import check_shards
from mil_jax.data.splits.splits import read_splits
from mil_jax.errors import UserError
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.torch_checkpoints import load_state_dict
from mil_jax.reports.comparison.load import read_method
from mil_jax.run_folder import features_json, tasks_json
from mil_jax.run_folder.folder import RunFolder

STORED = Path(__file__).parents[1] / "compatibility"
SECONDS, MEMORY = 20, 3 << 30  # of CPU; beyond what the process has when it begins
REFUSED = 7
SLIDES = [f"s{number}" for number in range(12)]


@dataclass(frozen=True)
class Kind:
    """make: writes a whole example into a folder, and returns the files to damage. read: what a command does with the folder."""

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


def _table(folder: Path) -> pd.DataFrame:
    del folder
    rng = np.random.default_rng(0)
    ages, labels = rng.integers(30, 90, len(SLIDES)), rng.choice(["A", "B"], len(SLIDES))
    return pd.DataFrame({"slide_id": SLIDES, "case_id": [f"p{s}" for s in SLIDES], "label": labels, "age": ages})


def _write_table(suffix: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        path, table = folder / f"t{suffix}", _table(folder)
        if suffix == ".parquet":
            table.to_parquet(path, index=False)
        elif suffix == ".xlsx":
            table.to_excel(path, index=False)
        else:
            table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        return [path]

    return make


def _cohort(folder: Path) -> object:
    (path,) = folder.glob("t.*")
    settings = CohortSettings(path, filter="age > 20", columns=("age",), min_matched=0.0)
    return build_cohort(SLIDES, np.full(len(SLIDES), 9), settings)


def _features(suffix: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        rng, path = np.random.default_rng(0), folder / f"s0{suffix}"
        arrays = {"features": rng.normal(size=(30, 8)).astype(np.float32), "coords": np.arange(60).reshape(30, 2)}
        if suffix == ".npy":
            np.save(path, arrays["features"])
        elif suffix == ".npz":
            np.savez_compressed(path, **arrays)
        elif suffix == ".h5":
            with h5py.File(path, "w") as file:
                file.attrs.update({"patch_size": 256, "target_magnification": 20, "level0_magnification": 40})
                for name, array in arrays.items():
                    file.create_dataset(name, data=array, chunks=True, compression="gzip")
        else:
            import torch

            torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
        return [path]

    return make


def _read_features(folder: Path) -> object:
    layout = recognise(folder)
    return layout.sizes(), list(layout.slides())


def _stored(name: str, patterns: tuple[str, ...]) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        shutil.copytree(STORED / name, folder / "it")
        return sorted(path for pattern in patterns for path in (folder / "it").glob(pattern))

    return make


def _read_sealed_shards(folder: Path) -> object:
    """As one who alters an index would: with checksums that fit."""
    path = folder / "it" / "index.json"
    with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError, OSError, RecursionError):
        content = json.loads(path.read_bytes())
        content["records_crc32c"] = google_crc32c.value((folder / "it" / "records.csv").read_bytes())
        for shard in content["shards"]:
            shard["mtime_ns"] = (folder / "it" / shard["file"]).stat().st_mtime_ns
        path.write_text(json.dumps(content))
    return _read_shards(folder)


def _read_shards(folder: Path) -> object:
    shards = Shards.open(folder / "it")
    return check_shards(shards), [shards.read_coords(number) for number in range(len(shards))]


def _read_run(folder: Path) -> object:
    run = RunFolder.require_complete(folder / "it")
    tables = [run.read_table(name) for name in ("splits.csv", "predictions.csv", "excluded.csv")]
    read = run.config, run.choices, tasks_json.read(run), features_json.read(run), run.read_metrics(), tables
    return read, read_method("a", [folder / "it"])


def _read_model(folder: Path) -> object:
    run = TrainedRun.open(folder / "it")
    return run.validation(0), run.splits(0)


def _resume(folder: Path) -> object:
    run = RunFolder.open(folder / "it")
    run = RunFolder.create(folder / "it", run.config, run.read_json("config.json")["data"], resume=True)
    return run.choices, run.truncate_metrics("supervised", 2)


def _annotation(suffix: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        square = [[0, 0], [100, 0], [100, 100], [0, 0]]
        shape = {"type": "Polygon", "coordinates": [square]}
        area = {"geometry": shape, "properties": {"classification": {"name": "T"}, "objectType": "annotation"}}
        corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(square))
        xml = f'<A><Annotation Type="Polygon"><Coordinates>{corners}</Coordinates></Annotation></A>'
        path = folder / f"s0{suffix}"
        path.write_text(json.dumps({"features": [area, area]}) if suffix == ".geojson" else xml)
        return [path]

    return make


def _splits(folder: Path) -> list[Path]:
    path = folder / "splits.csv"
    path.write_text(
        "slide_id,fold_0,fold_1\n" + "".join(f"{s},train,{'test' if i < 4 else 'val'}\n" for i, s in enumerate(SLIDES))
    )
    return [path]


def _read_splits(folder: Path) -> object:
    _table(folder).to_csv(folder / "t.csv", index=False)
    return read_splits(folder / "splits.csv", _cohort(folder))  # type: ignore[arg-type]


def _coordinates(folder: Path) -> list[Path]:
    tiling = Tiling(tile=64, edge=64, step=64, level=0, downsample=1.0, mpp=0.5)
    places = np.arange(20).reshape(10, 2)
    write_coordinates(
        folder / "s0.h5", Coordinates("s0", tiling, places, np.ones(10), 0.5, 20.0, (640, 640), (640, 640), 1, 1, 0)
    )
    return [folder / "s0.h5"]


def _checkpoint(suffix: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        path, arrays = (
            folder / f"c{suffix}",
            {"layer.weight": np.ones((4, 3), np.float32), "layer.bias": np.ones(4, np.float32)},
        )
        if suffix == ".npz":
            np.savez(path, **arrays)
        elif suffix == ".safetensors":
            header, offset = {}, 0
            for name, array in arrays.items():
                header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
                offset += array.nbytes
            text = json.dumps(header).encode()
            path.write_bytes(
                len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values())
            )
        else:
            import torch

            torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
        return [path]

    return make


def _instance_labels(folder: Path) -> list[Path]:
    np.save(folder / "s0.npy", np.arange(9) % 2)
    (folder / "s1.csv").write_text("label\n" + "0\n1\n1\n" * 3)
    return [folder / "s0.npy", folder / "s1.csv"]


KINDS: dict[str, Kind] = {
    **{f"table {suffix}": Kind(_write_table(suffix), _cohort) for suffix in (".csv", ".tsv", ".xlsx", ".parquet")},
    **{f"features {suffix}": Kind(_features(suffix), _read_features) for suffix in (".npy", ".npz", ".h5", ".pt")},
    "shards": Kind(_stored("shards_0_1", ("index.json", "records.csv", "*.tfrecord*")), _read_shards),
    "sealed shards": Kind(_stored("shards_0_1", ("index.json", "records.csv")), _read_sealed_shards),
    "run": Kind(_stored("runs_0_1/complete", ("*.json", "*.csv", "*.jsonl")), _read_run),
    "model": Kind(
        _stored("runs_0_1/complete", ("checkpoints/**/*", "tasks.json", "config.json", "summary.json")), _read_model
    ),
    "unfinished run": Kind(_stored("runs_0_1/unfinished", ("*.json", "*.jsonl")), _resume),
    "annotation .geojson": Kind(_annotation(".geojson"), lambda folder: read_outlines(folder / "s0.geojson")),
    "annotation .xml": Kind(_annotation(".xml"), lambda folder: read_outlines(folder / "s0.xml")),
    "splits": Kind(_splits, _read_splits),
    "coordinates": Kind(_coordinates, lambda folder: read_coordinates(folder / "s0.h5")),
    **{
        f"weights {suffix}": Kind(
            _checkpoint(suffix), lambda folder, suffix=suffix: load_state_dict(folder / f"c{suffix}")
        )
        for suffix in (".npz", ".pt", ".safetensors")
    },
    "instance labels": Kind(
        _instance_labels, lambda folder: read_instance_labels(folder, ["s0", "s1"], np.array([9, 9]))
    ),
}

NASTY = (
    b"",
    b"\0",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b"[" * 3000,
    b"null",
    b"{}",
    b"\xff\xfe",
    b'"',
    b",",
    b"\n",
    b"=1+1",
    b"../../x",
)
VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "../../x",
    "9" * 5000,
    [],
    [[]],
    {},
    {"a": 1},
    [1, "a"],
    "\ud800",
)


def damage(path: Path, rng: random.Random) -> None:
    """One mutation of a file."""
    content = path.read_bytes()
    if path.suffix in (".json", ".geojson") and rng.random() < 0.5:
        try:
            path.write_text(json.dumps(_changed(json.loads(content), rng)))
            return
        except (ValueError, UnicodeEncodeError):
            pass
    if path.suffix in (".csv", ".tsv", ".jsonl") and rng.random() < 0.4:
        path.write_bytes(_changed_rows(content, rng))
        return
    place, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 8, 64, 1024))
    match rng.randrange(6):
        case 0:
            content = content[:place]
        case 1:
            content = content[:place] + content[place + length :]
        case 2:
            content = content[:place] + rng.choice(NASTY) + content[place:]
        case 3:
            content = content[:place] + content[place : place + length] * 2 + content[place + length :]
        case 4:
            content = content[:place] + rng.randbytes(min(length, 8)) + content[place + min(length, 8) :]
        case _:
            content = content[:place] + bytes(min(length, len(content) - place)) + content[place + length :]
    path.write_bytes(content)


def _changed(value: object, rng: random.Random) -> object:
    """JSON with one value somewhere replaced, or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value))
        rest = {key: of for key, of in value.items() if key != name}
        return rest if rng.random() < 0.2 else value | {name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        number = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:number] + value[number + 1 :]
        return [*value[:number], _changed(value[number], rng), *value[number + 1 :]]
    return rng.choice(VALUES)


def _changed_rows(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    cells = lines[number].split(b",")
    match rng.randrange(4):
        case 0:
            cells[rng.randrange(len(cells))] = rng.choice(NASTY)
        case 1:
            del cells[rng.randrange(len(cells))]
        case 2:
            cells.insert(rng.randrange(len(cells) + 1), rng.choice(NASTY))
        case _:
            return b"\n".join([*lines[:number], *[lines[number]] * 3, *lines[number:]])
    return b"\n".join([*lines[:number], b",".join(cells), *lines[number + 1 :]])


def prepare_case(seed: int, number: int, folder: Path, kind: str = "") -> str:
    """Writes a case into an empty folder; returns its kind."""
    names = [kind] if kind else list(KINDS)
    name = names[number % len(names)]
    rng = random.Random(f"{seed}, {number}")
    files = [path for path in KINDS[name].make(folder) if path.is_file()]
    for _ in range(rng.choice((1, 1, 2, 3))):
        damage(rng.choice(files), rng)
    return name


def run_case(seed: int, number: int, kind: str = "") -> str:
    """What went wrong with a case; "" where it ended as it should."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        name = prepare_case(seed, number, folder, kind)
        reading, writing = os.pipe()
        with warnings.catch_warnings(
            action="ignore", category=RuntimeWarning
        ):  # threads of JAX: a child uses none of them
            child = os.fork()
        if child == 0:
            os.close(reading)
            _in_child(name, folder, writing)
        os.close(writing)
        said = b""
        deadline = time.monotonic() + 3 * SECONDS
        os.set_blocking(reading, False)
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            with contextlib.suppress(BlockingIOError):
                said += os.read(reading, 1 << 16)
            if ended:
                break
            time.sleep(0.002)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"{name}: does not end"
        os.close(reading)
        code = os.waitstatus_to_exitcode(status)
        return "" if code in (0, REFUSED) else f"{name}: ended with {code}: {said.decode(errors='replace')}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_child(name: str, folder: Path, output: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS,) * 2)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    code, text = 0, ""
    try:
        KINDS[name].read(folder)
    except (UserError, SlideError) as error:
        code, text = REFUSED, str(error)
        if "\n" in text or not text or len(text) > 2000:
            code, text = 1, f"is no one sentence: {text[:300]!r}"
    except BaseException:
        code, text = 1, traceback.format_exc()[-1500:]
    os.write(output, text.encode(errors="replace"))
    os._exit(code)


def fuzz(seed: int, cases: range, kind: str = "") -> list[str]:
    """A text for each case that went wrong, with the command that repeats it."""
    for name, one in KINDS.items():  # what reading needs is imported once, before the forks
        with tempfile.TemporaryDirectory() as folder:
            one.make(Path(folder))
            if name != "model":  # JAX's threads do not survive a fork
                one.read(Path(folder))
    wrong = []
    for number in cases:
        found = run_case(seed, number, kind)
        if found:
            more = f" --kind '{kind}'" if kind else ""
            wrong.append(f"{found}\n  again: python -m tests.faults.fuzz --seed {seed} --case {number}{more}")
    return wrong


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--case", type=int)
    parser.add_argument("--kind", default="", choices=["", *KINDS])
    options = parser.parse_args()
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            name = prepare_case(options.seed, options.case, Path(folder), options.kind)
            print(f"{name}:", *(path.name for path in sorted(Path(folder).rglob("*")) if path.is_file()))
            print(KINDS[name].read(Path(folder)))
        return 0
    started = time.monotonic()
    wrong = fuzz(options.seed, range(options.cases), options.kind)
    print(*wrong, sep="\n\n")
    print(f"{options.cases} cases, {len(wrong)} wrong, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
