"""Cases of a benchmark one after another, each within a deadline, in a process that is replaced where a case hangs or ends it.

The process that supervises never touches the device. Every case is a line of a JSON file as soon as it ends, whatever ends it, so that
what was measured is kept when the machine is taken away.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PREPARE = 150.0
GRACE = 15.0  # seconds after its deadline in which a case may still end by itself
LEAST = 5.0  # seconds of the budget below which no case begins, and that the last one has
LEFT_OUT = "left out"
Figures = dict[str, Any]


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Case:
    """measure: given what `prepare` returned, the figures. prepare: what can be done before in a thread, compilation above all.

    deadline: seconds of `measure`. shown: figures -> what the table says. bar: what is asked for, of the table.
    """

    name: str
    deadline: float
    measure: Callable[[Any], Figures]
    shown: Callable[[Figures], str]
    prepare: Callable[[], Any] = _nothing
    bar: str = ""


class _DeadlineError(Exception):
    """A case has used up its time."""


def run_cases(
    make: Callable[..., Sequence[Case]], arguments: Sequence[Any], lines: Path, budget: float, threads: int
) -> dict[str, Figures]:
    """The figures of each case of `make(*arguments)` by name, or {"left out": why}; all within `budget` seconds.

    lines: the file, written anew. threads: so many cases in a row are prepared at once, for at most PREPARE seconds; while a case is
    measured, none is prepared.
    """
    begun = time.monotonic()
    ends = begun + budget
    cases, figures = make(*arguments), dict[str, Figures]()
    lines.write_text("", encoding="utf-8")
    worker: _Worker | None = None
    try:
        for number, case in enumerate(cases):
            if ends - time.monotonic() < LEAST:
                found: Figures = {LEFT_OUT: f"the {budget:.0f} s of all cases were over"}
            else:
                worker = worker or _Worker(make, arguments, threads)
                found = worker.run(number, case.deadline, ends)
                if not worker.lives:
                    worker = None
            figures[case.name] = found
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": case.name, "at": round(time.monotonic() - begun, 1), **found}) + "\n")
            print(f"{case.name}: {found[LEFT_OUT] if LEFT_OUT in found else case.shown(found)}", flush=True)
    finally:
        if worker:
            worker.end()
    return figures


class _Worker:
    """The process that measures."""

    def __init__(self, make: Callable[..., Sequence[Case]], arguments: Sequence[Any], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(make, arguments, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.lives = True

    def run(self, number: int, deadline: float, ends: float) -> Figures:
        """ends: when the time of all cases is over, on the monotonic clock."""
        try:
            limit = min(PREPARE, ends - time.monotonic())
            self.ours.send((number, limit))
            if not self.ours.poll(limit + GRACE):
                return self._given_up("hung while it was prepared")
            self.ours.recv()
            deadline = min(deadline, max(ends - time.monotonic(), LEAST))
            self.ours.send(deadline)
            if not self.ours.poll(deadline + GRACE):
                return self._given_up(f"hung: not ended {GRACE:.0f} s after its deadline of {deadline:.0f} s")
            found: Figures = self.ours.recv()
        except (EOFError, OSError):
            self.process.join(GRACE)
            return self._given_up(f"its process ended with {self.process.exitcode}")
        if found.pop("over", False):  # what it was doing goes on in some thread
            self.end()
        return found

    def _given_up(self, why: str) -> Figures:
        self.end()
        return {LEFT_OUT: why}

    def end(self) -> None:
        self.lives = False
        self.process.kill()
        self.process.join()


def _work(make: Callable[..., Sequence[Case]], arguments: Sequence[Any], threads: int, connection: Connection) -> None:
    cases = make(*arguments)
    prepared: dict[int, Future[Any]] = {}
    with ThreadPoolExecutor(threads) as pool:
        while True:
            try:
                number, limit = connection.recv()
            except EOFError:
                return
            if number not in prepared:
                batch = range(number, min(number + threads, len(cases)))
                prepared = {n: pool.submit(cases[n].prepare) for n in batch}
                wait(prepared.values(), limit)
            connection.send("prepared")
            connection.send(_measured(cases[number], prepared[number], connection.recv()))


def _measured(case: Case, prepared: Future[Any], deadline: float) -> Figures:
    begun = time.perf_counter()
    try:
        with _within(deadline):
            found = case.measure(prepared.result())
    except _DeadlineError:
        return {LEFT_OUT: f"not done within {deadline:.0f} s", "over": True}
    except Exception as error:  # one case does not end the others
        return {LEFT_OUT: f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()[-2000:]}
    return {**found, "took": round(time.perf_counter() - begun, 2)}


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def over(number: int, frame: Any) -> None:
        raise _DeadlineError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
