"""Who hears of a training, and may stop it."""

from __future__ import annotations

from signal import SIGTERM
from typing import Any, Protocol


class Callback(Protocol):
    """What the engine tells while it runs, and asks."""

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        """A phase begins, or is resumed, at `epoch`."""

    def steps(self, count: int) -> None:
        """`count` more steps are done, over all replicas."""

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        """An epoch is decided: a row for each replica that ran in it."""

    def stop_requested(self) -> bool:
        """Whether to save and stop at the next dispatch."""


class TrainingInterrupted(Exception):
    """Training was asked to stop; its state is saved. signal: what asked; exit_code: that of a command which ends by it."""

    signal = int(SIGTERM)

    @property
    def exit_code(self) -> int:
        return 128 + self.signal
