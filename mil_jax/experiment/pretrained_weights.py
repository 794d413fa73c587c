"""First weights from elsewhere, of a teacher or a backbone: of each run from the same run of another run folder, or from PyTorch files.

A run folder says which slides its runs were trained and selected on; weights that have seen this run's validation or test slides are
refused. A PyTorch file says nothing, and the summary says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.data.label_columns import LABEL_COLUMN
from mil_jax.data.splits.splits import TEST, VALIDATION
from mil_jax.engine.checkpoints import read_final
from mil_jax.engine.plan import Replica
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.targets import Target
from mil_jax.interop.torch_checkpoints import import_state_dict, load_state_dict
from mil_jax.run_folder.folder import RunFolder, is_run_folder
from mil_jax.strategies.supervised import Supervised
from mil_jax.types import PyTree

OWN = {"teacher": ("train", "none"), "backbone": ("train",)}  # values that name nothing from elsewhere
TORCH_FILES = ("fold_{}_model_best_auc.pt", "fold_{}_model_best.pt")  # as MHIM-MIL names them, v1 and v2


class InitialWeights(NamedTuple):
    """What the first phase begins with. params: with the leading axis [R] of the runs. note: where they come from, for the summary."""

    params: PyTree
    note: str


@dataclass(frozen=True)
class TargetRun:
    """A run that is to begin with the weights. held_out: ids of its validation and test bags; tested: of its test bags alone."""

    name: str
    label_column: str
    fold: int
    fold_name: str
    seed: int
    held_out: frozenset[str]
    tested: frozenset[str]

    @classmethod
    def of(
        cls, name: str, replica: Replica, target: Target, ids: np.ndarray, parts: np.ndarray, selected_on_test: bool
    ) -> TargetRun:
        """ids, parts: of all bags [M], the run's parts. Where the test part chooses epochs, it may have chosen the teacher's, too."""
        return cls(
            name,
            target.name,
            replica.fold,
            str(target.splits.names[replica.fold]),
            replica.seed,
            held_out=frozenset(ids[(parts == VALIDATION) | (parts == TEST)].tolist()),
            tested=frozenset(() if selected_on_test else ids[parts == TEST].tolist()),
        )


class Source(NamedTuple):
    """A setting that names something from elsewhere. setting: its dotted name. what: of a run, for the summary."""

    setting: str
    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.setting}={self.path}"


def weights_source(config: ConfigDict) -> Source | None:
    """Where first weights come from, if from elsewhere. Raises ConfigError where there is nothing."""
    setting, what = {"mhim": ("teacher", "first teacher"), "ibmil": ("backbone", "backbone")}.get(
        config.strategy.name, ("", "")
    )
    if not setting or config.strategy[setting] in OWN[setting]:
        return None
    source = Source(f"strategy.{setting}", Path(config.strategy[setting]), what)
    if not source.path.exists():
        nearest = difflib.get_close_matches(config.strategy[setting], OWN[setting], n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"name one, or {' or '.join(OWN[setting])}"
        raise ConfigError(f"{source}: there is no such run folder or file; {advice}")
    return source


def load_weights(
    source: Source, config: ConfigDict, plain: Supervised, bag: Bag, targets: Sequence[TargetRun]
) -> InitialWeights:
    """Weights for every target, of the aggregator that `plain` trains; bag: of shapes.

    Raises ConfigError or DataError where they do not fit, naming the keys, or have seen what they must not.
    """
    path, expected = source.path, plain.parameter_shapes(bag)
    if is_run_folder(path):
        params, _, runs = read_final(completed(source, config.data.normalize).checkpoints)
        places = same_runs(source, runs, targets)
        tree = jax.tree.map(lambda x: np.asarray(x)[places], params)
        _require_fit(source, path, jax.tree.map(lambda x: x[0], tree), expected)
        return InitialWeights(tree, f"The {source.what} of each run is the same run of {path}.")
    by_file: dict[Path, PyTree] = {}
    for target in targets:
        file = _torch_file(source, target.fold)
        if file not in by_file:
            by_file[file] = _imported(source, file, plain.module, config.aggregator.name)
            _require_fit(source, file, by_file[file], expected)
    trees = [by_file[_torch_file(source, target.fold)] for target in targets]
    return InitialWeights(
        jax.tree.map(lambda *leaves: np.stack(leaves), *trees),
        f"The {source.what} came from {path}; provenance unknown: it may have been trained on slides that are tested here.",
    )


def completed(source: Source, normalize: str) -> RunFolder:
    """The run folder that the source is. Raises UserError where its run has not ended or normalised features in another way."""
    folder = RunFolder.require_complete(source.path)
    other = folder.config["data"]["normalize"]
    if other != normalize:
        raise ConfigError(f"{source} was trained with data.normalize={other}, not {normalize}: set it to that")
    return folder


def same_runs(source: Source, runs: Sequence[dict[str, Any]], targets: Sequence[TargetRun]) -> list[int]:
    """The place of each target's own run among the source's `runs`. Raises ConfigError where there is none, or it has seen too much."""
    places = []
    for target in targets:
        same = [
            place
            for place, run in enumerate(runs)
            if (str(run["fold"]), run["seed"]) == (target.fold_name, target.seed)
            and run.get(LABEL_COLUMN, target.label_column) == target.label_column
        ]
        if not same:
            raise ConfigError(f"{source} holds no run of {target.name}: train it with the same folds and seeds")
        run = runs[same[0]]
        leaked = sorted({*run["training"]} & target.held_out | {*run["validation"]} & target.tested)
        if leaked:
            raise ConfigError(
                f"{source} has seen {len(leaked)} bags that {target.name} validates or tests on ({leaked[0]}, ...): use its splits "
                f"(splits.file=PATH/splits.csv), or another {source.what}"
            )
        places.append(same[0])
    return places


def _torch_file(source: Source, fold: int) -> Path:
    path = source.path
    if not path.is_dir():
        return path
    for name in TORCH_FILES:
        if (path / name.format(fold)).is_file():
            return path / name.format(fold)
    raise DataError(
        f"{source} is neither a run folder nor a file, and holds no {TORCH_FILES[0].format(fold)}: name what holds weights"
    )


def _imported(source: Source, file: Path, module: aggregators.Aggregator, name: str) -> PyTree:
    """By the published form whose names are most like those of the file; it must fit that one strictly."""
    state = load_state_dict(file)
    forms = [variant for variant, of in aggregators.variants().items() if of.aggregator == name]
    if not forms:
        raise ConfigError(f"{source.setting}={file}: {name} has no published PyTorch form; name a run folder")
    last_parts = {key.replace("patch_to_emb.", "feature.") for key in state}
    likest = max(forms, key=lambda variant: len(last_parts & set(module.state_dict_map(variant))))
    try:
        return jax.tree.map(np.asarray, import_state_dict(module, state, likest))
    except DataError as error:
        raise DataError(f"{source.setting}={file}: {error}") from error


def _require_fit(source: Source, path: Path, tree: PyTree, expected: PyTree) -> None:
    found, wanted = _shapes(tree), _shapes(expected)
    parts = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(key for key in found.keys() & wanted.keys() if found[key] != wanted[key]),
    }
    if any(parts.values()):
        named = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in parts.items() if keys)
        raise DataError(
            f"{source.setting}={path} does not fit this aggregator ({named}): train it with the same aggregator settings"
        )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
