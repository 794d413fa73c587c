"""Runs a folder of parity cases and says what passed. `scripts/parity.py` is its command line."""

from __future__ import annotations

import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import jax

from mil_jax.errors import DataError
from tests.parity import adapters
from tests.parity.case import Case
from tests.parity.rule import compare, not_compared

EXTRA_ROWS = 5


@dataclass(frozen=True)
class Outcome:
    """How a case ended: status "passed", "failed" or "not covered"; `worst` is the array with the largest error /
    bound.
    """

    status: str
    worst: str = ""
    error: float = 0.0
    bound: float = 0.0
    failures: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def line(self, name: str) -> str:
        if self.status == "not covered":
            return f"{name}: not covered ({self.note})"
        parts = [f"{name}: {self.status}"]
        if self.worst:
            parts.append(f"largest error {self.error:.2e}, bound {self.bound:.2e} ({self.worst})")
        if self.failures:
            parts.append("failed: " + ", ".join(self.failures))
        if self.note:
            parts.append(self.note)
        if self.skipped:
            parts.append("skipped: " + ", ".join(f"{key} ({reason})" for key, reason in self.skipped.items()))
        return "; ".join(parts)


def load_cases(folder: Path, prefix: str = "") -> list[Case]:
    """The cases of a folder whose file names start with `prefix`, in order. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of parity cases")
    paths = sorted(path for path in folder.glob("*.npz") if path.name.startswith(prefix))
    if not paths:
        named = f" whose name starts with {prefix!r}" if prefix else ""
        raise DataError(f"{folder}: holds no parity case (*.npz){named}")
    cases = []
    for path in paths:
        try:
            cases.append(Case.load(path))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as a parity case ({error})") from error
    return cases


def shared_buckets(cases: Iterable[Case]) -> dict[tuple[str, str], int]:
    """Rows to pad to, per (method, variant): every bag of its cases gets at least `EXTRA_ROWS` rows of padding."""
    largest: dict[tuple[str, str], int] = defaultdict(int)
    for case in cases:
        adapter = adapters.find(case)
        for size in adapter.bag_sizes(case) if adapter else []:
            key = (case.method, case.variant)
            largest[key] = max(largest[key], size)
    return {key: -(-(size + EXTRA_ROWS) // 8) * 8 for key, size in largest.items()}


def run_case(case: Case, bucket: int | None = None) -> Outcome:
    """Runs one case, padded to `bucket` rows when given, at the highest matrix product precision."""
    adapter = adapters.find(case)
    if adapter is None:
        return Outcome("not covered", note=f"method {case.method}, variant {case.variant}")
    try:
        with jax.default_matmul_precision("highest"):
            answer = adapter.answer(case, bucket)
    except Exception as error:  # one broken case must not hide the others
        reason = (str(error).splitlines() or [""])[0]
        return Outcome("failed", failures=[f"{type(error).__name__}: {reason}"])
    skipped = {**not_compared(case), **{key: reason for key, reason in answer.skipped.items() if key in case.arrays}}
    worst, failures = ("", 0.0, 0.0, -1.0), []
    for key, stored in case.arrays.items():
        if key in skipped:
            continue
        if key not in answer.values:
            failures.append(f"{key} (not computed)")
            continue
        found = compare(key, answer.values[key], stored, case.meta.get("tolerance", {}))
        if not found.passed:
            failures.append(key)
        if found.ratio > worst[3]:
            worst = (key, found.error, found.bound, found.ratio)
    status = "failed" if failures or worst[3] < 0 else "passed"
    return Outcome(status, *worst[:3], failures, skipped)


def run_folder(folder: Path, prefix: str = "", padded: bool = False, say: Callable[[str], None] = print) -> int:
    """Runs every case of a folder and reports through `say`, a line each; returns the number of failed cases."""
    cases = load_cases(folder, prefix)
    buckets = shared_buckets(cases) if padded else {}
    per_method: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        bucket = buckets.get((case.method, case.variant))
        outcome = run_case(case, bucket)
        line = outcome.line(case.name)
        if padded and outcome.status != "not covered":
            line += f"; padded to {bucket} rows" if bucket else "; no bag to pad, ran bare"
        say(line)
        per_method[case.method][outcome.status] += 1
    total: Counter[str] = Counter()
    for method, counts in per_method.items():
        say(f"{method}: {_counts(counts)}")
        total += counts
    say(_counts(total))
    return total["failed"]


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "not covered"))
