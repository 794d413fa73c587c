"""Shares of a training (`--runs i/n`) joined into the run folder of all its runs, as it is before their last predictions.

A share leaves checkpoints and metrics. Joined run by run, they are those of one training of all runs at its end, which is then resumed:
it trains nothing, predicts and writes the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax.data.tables import listed
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Progress
from mil_jax.engine.types import Phase
from mil_jax.errors import ConfigError, RunFolderError
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.run import FREE_ON_RESUME
from mil_jax.experiment.targets import splits_table
from mil_jax.files import atomic_folder
from mil_jax.run_folder.folder import RunFolder, require_same_settings, understood
from mil_jax.types import PyTree

SHARED = ("ladder", "precision", "blocks")  # choices on which what the runs become depends


@dataclass(frozen=True)
class _Ended:
    """What the checkpoint at the end of a phase holds. at: the place of each of its runs among all."""

    place: dict[str, Any]
    arrays: PyTree
    at: np.ndarray


def require_alike(shares: Sequence[RunFolder]) -> None:
    """Raises RunFolderError or ConfigError where shares are of trainings with other settings, data or choices."""
    if len({share.path.resolve() for share in shares}) < len(shares):
        raise ConfigError("--part names a folder twice; name each share once")
    first = shares[0]
    for other in shares[1:]:
        require_same_settings(other, first.config, FREE_ON_RESUME, str(other.path))
        with understood(other.path / "config.json"):
            pairs = [(share.read_json("config.json")["data"], share.choices) for share in (first, other)]
        (data, chosen), (other_data, other_chosen) = pairs
        differing = [name for name in data if data[name] != other_data.get(name)]
        differing += [name for name in SHARED if chosen.get(name) != other_chosen.get(name)]
        if differing:
            raise RunFolderError(
                f"{other.path} was trained with other data or on another kind of machine than {first.path} ({listed(differing)} differ): "
                "train it anew with the same"
            )


def join(experiment: Experiment, shares: Sequence[RunFolder], target: Path) -> None:
    """Writes the run folder `target`. experiment: of all runs.

    Raises RunFolderError where a share has not ended or is damaged, and where a run is missing or there twice.
    """
    runs = experiment.plan.described()
    phases = [[_ended(share, phase, runs) for share in shares] for phase in experiment.phases]
    _require_each_once(phases[-1], shares, runs)
    with (
        atomic_folder(target, "config.json", False, "a run") as temporary,
        RunFolder.create(temporary, {**shares[0].config, "run": str(target)}, experiment.fingerprints) as folder,
    ):
        folder.write_choices({name: value for name, value in shares[0].choices.items() if name != "runs_side_by_side"})
        sessions = [one for share in shares for one in share.read_json("environment.json")["sessions"]]
        folder.write_json("environment.json", {"sessions": sessions})
        folder.write_table("splits.csv", splits_table(experiment.targets, experiment.cohort))
        folder.write_table("excluded.csv", experiment.excluded)
        names = [phase.strategy.name for phase in experiment.phases]
        folder.append_metrics(_metrics(names, shares, [one.at for one in phases[-1]]))
        for name, ended in zip(names, phases):
            checkpoints = Checkpoints(folder.checkpoints / name, 0)
            at = [one.at for one in ended]
            place = _joined_place([one.place for one in ended], at, runs)
            arrays = jax.tree.map(lambda *parts, at=at: _joined(parts, at), *(one.arrays for one in ended))
            checkpoints.save(place.get("epoch", 0) * 1_000_000, arrays, place, wait=True)
            checkpoints.close()


def _ended(share: RunFolder, phase: Any, runs: Sequence[str]) -> _Ended:
    """The end of a phase of a share. Raises RunFolderError where it has not ended."""
    name = phase.strategy.name
    checkpoints = Checkpoints(share.checkpoints / name, 0)
    with understood(share.path / "checkpoints" / name):
        try:
            place = checkpoints.place()
            whole = place is not None and (not isinstance(phase, Phase) or _is_end(place, phase))
            if place is None or not whole:
                raise RunFolderError(f"{share.path}: its runs have not ended; finish them with --resume")
            others = [run for run in place["runs"] if run not in runs]
            if others:
                raise RunFolderError(f"{share.path}: {others[0]} is no run of this training; name its shares only")
            at = np.array([runs.index(run) for run in place["runs"]])
            return _Ended(place, checkpoints.as_saved(), at)
        finally:
            checkpoints.close()


def _is_end(place: Mapping[str, Any], phase: Phase) -> bool:
    ended = place["epoch"] == phase.epochs or not any(Progress.from_json(place["progress"]).active)
    return ended and place["dispatch"] == 0


def _require_each_once(ended: Sequence[_Ended], shares: Sequence[RunFolder], runs: Sequence[str]) -> None:
    holders: dict[int, list[str]] = {number: [] for number in range(len(runs))}
    for share, one in zip(shares, ended):
        for number in one.at.tolist():
            holders[number].append(str(share.path))
    twice = next((number for number, paths in holders.items() if len(paths) > 1), None)
    if twice is not None:
        raise RunFolderError(f"{runs[twice]} is in {' and in '.join(holders[twice])}; name each share once")
    missing = [runs[number] for number, paths in holders.items() if not paths]
    if missing:
        raise RunFolderError(
            f"{len(missing)} of {len(runs)} runs are in none of these shares ({listed(missing)}); train theirs, and name it with --part"
        )


def _joined(parts: Sequence[Any], at: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [r, ...] of the shares as one [R, ...]; of what is padded to the longest of a share, to the longest of all, by -1."""
    longest = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    joined = np.full((sum(map(len, at)), *longest), -1, parts[0].dtype)
    for part, places in zip(parts, at):
        within: Any = places, *map(slice, part.shape[1:])
        joined[within] = part
    return joined


def _joined_place(places: Sequence[Mapping[str, Any]], at: Sequence[np.ndarray], runs: list[str]) -> dict[str, Any]:
    if "progress" not in places[0]:  # of an analysis
        return {"runs": runs}
    progress = {
        name: _joined([np.array(place["progress"][name]) for place in places], at).tolist()
        for name in places[0]["progress"]
    }
    return {"epoch": max(place["epoch"] for place in places), "dispatch": 0, "progress": progress, "runs": runs}


def _metrics(phases: Sequence[str], shares: Sequence[RunFolder], at: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The rows of all shares in the order of one training; `seconds` are those of all shares together."""
    rows, last = [], []
    for share, places in zip(shares, at):
        with understood(share.path / "metrics.jsonl"):
            mine = [{**row, "replica": int(places[row["replica"]])} for row in share.read_metrics()]
            rows += [(phases.index(row["phase"]), row["epoch"], row["replica"], row) for row in mine]
            last.append({(phases.index(row["phase"]), row["epoch"]): row["seconds"] for row in mine})
    seconds = dict.fromkeys(sorted({key for one in last for key in one}), 0.0)
    for one in last:
        spent = 0.0
        for key in seconds:
            spent = one.get(key, spent)
            seconds[key] += spent
    return [
        {**row, "seconds": round(seconds[phase, epoch], 3)}
        for phase, epoch, _, row in sorted(rows, key=lambda one: one[:3])
    ]
