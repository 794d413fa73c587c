"""What the commands that go through slides share: which slides, which of them here, what is done, and running them.

The unit of work is one slide to one set of files, each written whole under a temporary name and renamed, then a record
`WORK/records/COMMAND/SLIDE.json` written last: a slide without a valid record is done again. Therefore a command that was
killed at any moment goes on when it is started again, and jobs on many hosts share one folder without talking to each other.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from mil_jax.csv_cells import inert
from mil_jax.data.cohort.ids import natural_key
from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, DataError, UserError
from mil_jax.files import disown, id_file, make_folder, own, write_text
from mil_jax.interop.slide_bag import SLIDE_EXTENSIONS, slide_id_of

_OTHERS = (".jpg", ".jpeg", ".png", ".bmp", ".ome", ".dcm")  # thumbnails and the like, parts of names and of slides
# What OpenSlide opens as one file; DICOM slides are folders of files.
EXTENSIONS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")
OK, EMPTY, UNREADABLE, FAILED = "ok", "empty", "unreadable", "failed"
FINAL = (OK, EMPTY)  # a slide with another status is tried again by the next run
COLUMNS = ("slide", "path", "status", "reason")  # of every report, at its beginning
LAST_COLUMNS = ("seconds", "size", "mtime_ns")  # and at its end

Row = dict[str, Any]
Item = TypeVar("Item")  # a Slide, or a tuple of one and what belongs to it


class SlideError(Exception):
    """One slide cannot be used, and the others can. status: one word; the message: why, for the report."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)  # both, so that it can travel between processes
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Slide:
    """A slide file as it was found. size in bytes and mtime_ns tell whether it was replaced since."""

    slide_id: str
    path: Path
    size: int
    mtime_ns: int

    def is_as_in(self, row: Mapping[str, Any]) -> bool:
        """Whether the file is the one that a report's row speaks of."""
        return (self.size, self.mtime_ns) == (int(row["size"]), int(row["mtime_ns"]))


def find_slides(source: str | os.PathLike[str]) -> list[Slide]:
    """The slides in a folder and its subfolders, or one slide, in natural order of their ids.

    Raises DataError where there are none, and where two files have one id.
    """
    root = Path(source)
    if root.is_dir():
        paths = [
            Path(folder, name)
            for folder, _, names in os.walk(root)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    elif root.exists():
        paths = [root]
    else:
        raise DataError(f"{root}: there is no such folder of slides")
    if not paths:
        others = ", ".join(f"{count} {kind}" for kind, count in other_slides(root).items())
        found = (
            f"only {others}, which OpenSlide cannot read: convert them to pyramidal TIFF"
            if others
            else "no slides found"
        )
        raise DataError(f"{root}: {found}; known extensions are {', '.join(EXTENSIONS)}")
    slides = sorted(map(_slide, paths), key=lambda slide: natural_key(slide.slide_id))
    for first, second in pairwise(slides):
        if first.slide_id == second.slide_id:
            raise DataError(
                f"{first.path} and {second.path} are both slide {first.slide_id!r}; rename or remove one of them"
            )
    return slides


def other_slides(root: Path) -> Counter[str]:
    """Slides of kinds that OpenSlide cannot read, in a folder and its subfolders: how many of each extension."""
    kinds = [kind for kind in SLIDE_EXTENSIONS if kind not in (*EXTENSIONS, *_OTHERS)]
    return Counter(
        kind
        for _, folders, names in os.walk(root)
        for name in (*folders, *names)
        for kind in kinds
        if name.lower().endswith(kind) and not name.startswith(".")
    )


def _slide(path: Path) -> Slide:
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere: opening it says so
        return Slide(slide_id_of(path), path, 0, 0)
    return Slide(slide_id_of(path), path, status.st_size, status.st_mtime_ns)


def in_part(slides: Sequence[Slide], part: tuple[int, int]) -> list[Slide]:
    """The slides of job i of n: every n-th."""
    number, count = part
    return list(slides[number - 1 :: count])


class Records:
    """What a command has done in a work folder: its settings, a record for each slide, and the report made of them.

    work: the folder. command: names the records. table: the report's file name. columns: of the report, between COLUMNS
    and LAST_COLUMNS.
    """

    def __init__(self, work: str | os.PathLike[str], command: str, table: str, columns: Sequence[str]) -> None:
        self.work = Path(work)
        self.folder = self.work / "records" / command
        self.table = self.work / table
        self.columns = (*COLUMNS, *columns, *LAST_COLUMNS)
        self.digest = ""

    @contextmanager
    def claimed(self, part: tuple[int, int]) -> Iterator[None]:
        """Where this process does a part of the slides. Raises ConfigError while another one does the same part."""
        place = self.folder.with_name(f"{self.folder.name}-{part[0]}-of-{part[1]}")
        if not own(place):
            raise ConfigError(
                f"{self.work}: another process does the same there now; wait for it, or share the slides by --shard=i/n"
            )
        try:
            yield
        finally:
            disown(place)

    def use_settings(self, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Says what the records are made with; those made with other settings do not count as done.

        Raises ConfigError where the folder was begun with other settings, unless `overwrite`.
        """
        path = self.folder.with_suffix(".json")
        text = json.dumps(settings, indent=1, sort_keys=True)
        now = json.loads(text)
        before = _read_json(path)
        if before is not None and before != now and not overwrite:
            differing = [
                f"{name}={before.get(name)!r}, now {now.get(name)!r}"
                for name in sorted(before.keys() | now.keys())
                if before.get(name) != now.get(name)
            ]
            raise ConfigError(
                f"{self.work}: was begun with other settings ({listed(differing)}); use the same ones, another folder, "
                "or --overwrite"
            )
        if before != now:
            write_text(path, text + "\n")
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, slide_id: str) -> Row | None:
        """A slide's row of the report, with its `inputs`, if it was made with these settings."""
        row = _read_json(self._path(slide_id))
        return row if row is not None and row.get("settings") == self.digest else None

    def is_done(self, slide: Slide, inputs: Any = None) -> bool:
        """Whether a slide needs nothing: it ended well, it is the same file, and so are its other inputs."""
        row = self.read(slide.slide_id)
        return row is not None and row["status"] in FINAL and slide.is_as_in(row) and row["inputs"] == _plain(inputs)

    def run(self, slide: Slide, compute: Callable[[], Row], inputs: Any = None) -> Row:
        """Does one slide: `compute` writes its files and returns the columns of its row; then the record is written.

        What makes one slide unusable becomes its status. Raises UserError (a full disk), which ends the command.
        """
        begun = time.monotonic()
        self._path(slide.slide_id).unlink(missing_ok=True)  # nothing counts as done while its files are replaced
        try:
            row = {"status": OK, "reason": "", **compute()}
        except SlideError as error:
            row = {"status": error.status, "reason": error.reason}
        except UserError:
            raise
        except Exception as error:  # the other slides can be done; the command ends with code 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}, line {last.lineno}"
            row = {"status": FAILED, "reason": f"{type(error).__name__}: {error} ({place})"}
        return self.write(slide, row, inputs, round(time.monotonic() - begun, 3))

    def write(self, slide: Slide, row: Row, inputs: Any, seconds: float) -> Row:
        """Writes a slide's record; returns its row."""
        whole = {
            "slide": slide.slide_id,
            "path": str(slide.path),
            **row,
            "seconds": seconds,
            "size": slide.size,
            "mtime_ns": slide.mtime_ns,
        }
        record = {**whole, "inputs": _plain(inputs), "settings": self.digest}
        write_text(self._path(slide.slide_id), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return whole

    def rows(self) -> list[Row]:
        """The rows of all slides done with these settings, by any job, in natural order."""
        names = [
            path.name.removesuffix(".json") for path in self.folder.glob("*.json") if not path.name.startswith(".")
        ]
        return [row for name in sorted(names, key=natural_key) if (row := self.read(name)) is not None]

    def write_table(self) -> list[Row]:
        """Writes the report of all jobs so far; returns its rows. One job at a time, so that the last one's is complete."""
        with _locked(self.folder.with_suffix(".lock")):
            rows = self.rows()
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: inert(value) for name, value in row.items()} for row in rows)
            write_text(self.table, text.getvalue())
        return rows

    def _path(self, slide_id: str) -> Path:
        return id_file(self.folder, slide_id, ".json")


def run_all(
    slides: Sequence[Item], unit: Callable[[Item], Row], crashed: Callable[[Item, str], Row], workers: int
) -> Iterator[Row]:
    """The rows of all slides as they become ready. unit: does one slide, in a process of its own when workers > 1; what a slide needs
    for itself is best a part of its item, as `unit` travels to the process with each.

    A process that dies (memory, a damaged slide) does not take the others with it: the slides it may have been doing are tried
    once more, each alone, and one that kills its process again is handed to `crashed`.
    """
    if workers == 1 or len(slides) < 2:
        yield from map(unit, slides)
        return
    waiting = list(reversed(slides))
    while waiting:
        running: dict[Future[Row], Item] = {}
        with _pool(min(workers, len(waiting))) as pool, suppress(BrokenProcessPool):
            while waiting or running:
                while waiting and len(running) < 2 * workers:
                    future = pool.submit(unit, waiting[-1])
                    running[future] = waiting.pop()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    row = future.result()
                    del running[future]
                    yield row
        for slide in running.values():  # none, unless a process died
            yield _alone(slide, unit, crashed)


def _alone(slide: Item, unit: Callable[[Item], Row], crashed: Callable[[Item, str], Row]) -> Row:
    with _pool(1) as pool:
        try:
            return pool.submit(unit, slide).result()
        except BrokenProcessPool:
            return crashed(slide, "its process died; is there enough memory for so many --workers?")


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, however it ends."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    else:
        pool.shutdown()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    make_folder(path.parent)
    with path.open("a") as file:
        with suppress(OSError):  # file systems without locks: the last report to be written may then lack a row
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
