"""The run folder: everything one run leaves behind, readable without mil_jax (JSON, CSV, Markdown, PNG).

config.json (settings, fingerprints of the data, automatic choices), environment.json, splits.csv, excluded.csv,
metrics.jsonl, predictions.csv, summary.json (with `complete`), summary.md, checkpoints/, figures/, and of IBMIL
dictionary.npz and dictionary.csv. config.json is written first, so a folder that has it is a run folder; each file is
written whole, and metrics.jsonl grows by whole lines.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mil_jax
from mil_jax.csv_cells import inert_table, original_table
from mil_jax.errors import RunFolderError, UserError
from mil_jax.files import atomic_write, disown, is_own, own, write_text
from mil_jax.run_folder.environment import describe_environment
from mil_jax.settings import present_settings

_MARK = "mil_jax_version"
_CHOICES = {"residency": str, "precision": str, "blocks": bool, "ladder": [int], "runs_side_by_side": {str: {int: int}}}
_LARGEST = 3.5e38  # beyond float32: no measure of a model


class RunFolder:
    """One run's folder. Made by `create` (to train) or `open` and `require_complete` (to read).

    path: the folder. resumed: whether `create` found a run to resume. moved: where `overwrite` put the older run.
    """

    def __init__(self, path: Path, *, resumed: bool = False, moved: Path | None = None) -> None:
        self.path = path
        self.resumed = resumed
        self.moved = moved

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        free: Sequence[str] = (),
    ) -> RunFolder:
        """A folder to train into; nothing is touched unless all checks pass.

        config: all settings of the run (nested). fingerprints: of the data by name ("features", "labels", "splits").
        resume: resume the run that is there, or start when there is none (a run killed at once leaves none).
        overwrite: move the run that is there aside, to PATH.old, PATH.old2, ...
        free: dotted names of settings, or of groups of them, that may differ when resuming.

        The folder is this process's own until it leaves `with`, or ends.

        Raises RunFolderError when the path is taken by a run (without resume or overwrite) or by something else, when another process
        trains into it, and when a run is resumed with other settings or data, naming what differs.
        """
        folder = Path(path)
        require_usable(folder, resume=resume, overwrite=overwrite)
        _make(folder.parent)
        before = is_own(folder)
        if not own(folder):
            raise RunFolderError(f"{folder}: another process trains into it now; wait for it, or name another folder")
        try:
            require_usable(folder, resume=resume, overwrite=overwrite)  # another process may have been quicker
            wanted = {"config": plain(config), "data": plain(fingerprints)}
            moved = None
            if is_run_folder(folder):
                if resume:
                    return cls._resume(folder, wanted, free)
                moved = _free_name(folder)
                folder.rename(moved)
            for part in (folder, folder / "checkpoints", folder / "figures"):
                _make(part)
            run = cls(folder, moved=moved)
            run.write_json("config.json", {_MARK: mil_jax.__version__, **wanted, "choices": {}})
            run._note_environment()
            return run
        except BaseException:  # Ctrl-C, too
            if not before:
                disown(folder)
            raise

    @classmethod
    def _resume(cls, folder: Path, wanted: dict[str, Any], free: Sequence[str]) -> RunFolder:
        run = cls(folder, resumed=True)
        differing = [line for line in _differences(run.config, wanted["config"]) if not _is_free(line, free)]
        if differing:
            raise RunFolderError(
                f"{folder} cannot be resumed with other settings: {_listing(differing)}; "
                "use the settings of the run, or name another folder"
            )
        with understood(folder / "config.json"):
            other_data = _differences(run.read_json("config.json")["data"], wanted["data"])
        if other_data:
            raise RunFolderError(
                f"{folder} cannot be resumed with other data: {_listing([line.split(' (')[0] for line in other_data])} "
                "changed since the run began; restore the data, or name another folder"
            )
        run._note_environment()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """An existing run folder, to read. Raises RunFolderError when there is none at `path`."""
        folder = Path(path)
        if not is_run_folder(folder):
            raise RunFolderError(f"{folder} is no run folder; name the folder that training wrote")
        return cls(folder)

    @classmethod
    def require_complete(cls, path: str | os.PathLike[str]) -> RunFolder:
        """An existing run folder whose run has ended. Raises RunFolderError otherwise."""
        run = cls.open(path)
        if not run.is_complete:
            raise RunFolderError(f"{run.path}: the run has not ended; finish it with --resume")
        return run

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets other processes train into the folder."""
        disown(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and its summary is written."""
        with understood(self.path / "summary.json"):
            return (self.path / "summary.json").is_file() and bool(self.read_json("summary.json").get("complete"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def config(self) -> dict[str, Any]:
        """The settings as they were written, under their present names."""
        with understood(self.path / "config.json"):
            return present_settings(self.read_json("config.json")["config"])

    @property
    def choices(self) -> dict[str, Any]:
        """The automatic choices (residency, chunk sizes, ladder) made when the run began; reused when it is resumed."""
        with understood(self.path / "config.json"):
            found = dict(self.read_json("config.json")["choices"])
            for name, kind in _CHOICES.items():
                if name in found and not _is_of(kind, found[name]):
                    raise TypeError(f"choices.{name} is {found[name]!r:.100}")
            return found

    def write_choices(self, choices: Mapping[str, Any]) -> None:
        """Adds automatic choices to config.json."""
        self.write_json("config.json", {**self.read_json("config.json"), "choices": {**self.choices, **plain(choices)}})

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per row to metrics.jsonl, all in one write; each row has at least `phase`, `epoch`,
        `fold` and `seed`.
        """
        lines = "".join(f"{_line(row)}\n" for row in rows)
        file = self.path / "metrics.jsonl"
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(lines)
        except OSError as error:
            raise RunFolderError(f"{file} cannot be written ({error.strerror}); fix that and use --resume") from error

    def truncate_metrics(self, phase: str, last_epoch: int) -> None:
        """Drops the rows of a phase after epoch `last_epoch` (-1: all), and a line that a killed run left half-written."""
        with understood(self.path / "metrics.jsonl"):
            kept = [row for row in self.read_metrics() if row["phase"] != phase or row["epoch"] <= last_epoch]
        write_text(self.path / "metrics.jsonl", "".join(f"{_line(row)}\n" for row in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; NaN was written as null and comes back as None."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        with understood(file):
            lines = file.read_text(encoding="utf-8").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = dict(json.loads(line))
                if any(type(row.get(name, 0)) is not int for name in ("epoch", "fold", "seed", "steps")):
                    raise TypeError("no whole numbers")
                if any(isinstance(value, float) and abs(value) > _LARGEST for value in row.values()):
                    raise ValueError("no measure")
                rows.append(row)
            except (ValueError, TypeError, RecursionError) as error:
                if number < len(lines):
                    raise RunFolderError(f"{file}, line {number} is no row of metrics; restore the file") from error
        return rows

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file; NaN and infinities become null."""
        write_text(self.path / name, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file (summary.md)."""
        write_text(self.path / name, text)

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the folder. Raises RunFolderError when it is not there or damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{self.path / name} cannot be read ({error}); restore it, or train again") from error

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Writes a CSV file (splits.csv, excluded.csv, predictions.csv) without the index; floats keep all digits."""
        with atomic_write(self.path / name) as temporary:
            inert_table(table).to_csv(temporary, index=False)

    def read_table(self, name: str) -> pd.DataFrame:
        """Reads a CSV file of the folder; ids, parts and targets stay text ("007", "1").

        Raises RunFolderError when it is not there or damaged.
        """
        with understood(self.path / name):
            header = pd.read_csv(self.path / name, nrows=0).columns
            text = {column: str for column in header if column in ("bag_id", "patient_id", "slide", "part", "target")}
            return original_table(pd.read_csv(self.path / name, dtype=text, keep_default_na=False, na_values=[""]))

    def _note_environment(self) -> None:
        known = (self.path / "environment.json").is_file()
        with understood(self.path / "environment.json"):
            sessions = list(self.read_json("environment.json")["sessions"]) if known else []
        self.write_json("environment.json", {"sessions": [*sessions, describe_environment()]})


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Where files of a run are interpreted: whatever a damaged one makes of that is a RunFolderError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunFolderError(
            f"{path} is damaged: what it holds does not fit together ({reason}); restore it, or train again"
        ) from error


def require_usable(path: str | os.PathLike[str], *, resume: bool = False, overwrite: bool = False) -> None:
    """Raises RunFolderError when `path` is taken by a run (without resume or overwrite) or by something else."""
    folder = Path(path)
    if resume and overwrite:
        raise RunFolderError(f"{folder}: --resume and --overwrite exclude each other; give one of them")
    if is_run_folder(folder):
        if not (resume or overwrite):
            raise RunFolderError(
                f"{folder} already holds a run; resume it (--resume), replace it (--overwrite), or name another"
            )
    elif _holds_something(folder):
        raise RunFolderError(
            f"{folder} exists and is no run folder (it has no readable config.json of mil_jax); name another folder"
        )


def is_run_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder that mil_jax made for a run."""
    try:
        stored = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and stored.keys() >= {_MARK, "config", "data", "choices"}


def require_same_settings(folder: RunFolder, now: Mapping[str, Any], free: Sequence[str], where: str) -> None:
    """Raises RunFolderError where a run had other settings than `now`, but for those that are `free`; `where`: what names the run."""
    lines = [line for line in _differences(folder.config, plain(now)) if not _is_free(line, free)]
    if lines:
        raise RunFolderError(f"{where} was trained with other settings: {_listing(lines)}; use those of the run")


def fingerprint(*parts: Any) -> str:
    """A short hash of arrays, tables, text and numbers, in their order: the same content gives the same fingerprint."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pd.DataFrame | pd.Series):
            content = part.to_csv().encode()
        elif isinstance(part, np.ndarray) and part.dtype != object:
            content = f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()
        else:
            content = json.dumps(plain(part), sort_keys=True).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def plain(content: Any) -> Any:
    """The same content in JSON's types: numpy values, tuples, paths and config dicts converted; NaN and infinity ->
    None.
    """
    if hasattr(content, "to_dict") and not isinstance(content, pd.DataFrame):
        content = content.to_dict()
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return plain(content.tolist())
    if isinstance(content, list | tuple | set | frozenset):
        return [plain(value) for value in (sorted(content) if isinstance(content, set | frozenset) else content)]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if content is None or isinstance(content, bool | int | float | str):
        return content
    return str(content)


def _is_of(kind: Any, value: Any) -> bool:
    """Whether JSON content is of a type, a list ([int]) or a dict ({str: int}, {int: int}) of one; keys that are numbers are text."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is_of(kind[0], one) for one in value)
    if isinstance(kind, dict):
        ((key, of),) = kind.items()
        names = isinstance(value, dict) and (key is str or all(name.isdecimal() for name in value))
        return names and all(_is_of(of, one) for one in value.values())
    return type(value) is kind


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be created ({error.strerror}); name another folder") from error


def _holds_something(path: Path) -> bool:
    """Whether anything but an aborted start of ours (empty subfolders, a temporary file) is at `path`."""
    if not path.is_dir():
        return path.exists() or path.is_symlink()
    ours = {"checkpoints", "figures"}
    return any(
        not (entry.name in ours and entry.is_dir() and not any(entry.iterdir())) and not entry.name.endswith(".tmp")
        for entry in path.iterdir()
    )


def _free_name(path: Path) -> Path:
    number = 1
    while (moved := path.with_name(f"{path.name}.old{'' if number == 1 else number}")).exists():
        number += 1
    return moved


def _differences(there: Any, now: Any, name: str = "") -> list[str]:
    """ "optimizer.lr (was 0.001, now 0.01)" for each setting that differs."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [*there, *(key for key in now if key not in there)]
        prefix = f"{name}." if name else ""
        return [
            line
            for key in keys
            for line in _differences(there.get(key, "not set"), now.get(key, "not set"), prefix + key)
        ]
    if type(there) is type(now) and there == now:
        return []
    if isinstance(there, int | float) and isinstance(now, int | float) and there == now:
        return []
    return [f"{name} (was {there}, now {now})"]


def _is_free(line: str, free: Sequence[str]) -> bool:
    name = line.split(" (")[0]
    return any(name == one or name.startswith(f"{one}.") for one in free)


def _listing(lines: list[str]) -> str:
    shown = ", ".join(lines[:8])
    return shown if len(lines) <= 8 else f"{shown} and {len(lines) - 8} more"
