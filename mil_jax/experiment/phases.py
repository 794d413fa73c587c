"""From a config to what is trained: the aggregator, the strategy, and the phases that it takes."""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from mil_jax import aggregators
from mil_jax.aggregators import reembedding
from mil_jax.aggregators.base import Aggregator
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.plan import Plan
from mil_jax.engine.types import AnalysisPhase, AnyPhase, Phase
from mil_jax.errors import ConfigError
from mil_jax.strategies import ibmil_settings, optimizers, registry
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.ibmil import IBMIL, MakeDictionary, TwoTierIBMIL
from mil_jax.strategies.ibmil_settings import IBMILSettings
from mil_jax.strategies.linear_probe_settings import PROBE
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_merging import MergingMHIM
from mil_jax.strategies.mhim_settings import MHIMSettings
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.base import Task

STRATEGIES = {"supervised": Supervised, "dtfd": TwoTiers}  # that aggregators name for themselves
TEACHER, BACKBONE = "teacher", "backbone"  # phases of plain runs, before those of MHIM-MIL and IBMIL


def strategy_class(aggregator: Aggregator) -> type[Supervised]:
    """How an aggregator is trained where the config chooses nothing: by the strategy that it names, or plainly supervised."""
    return STRATEGIES[aggregator.strategy]


def make_strategy(config: ConfigDict, task: Task, plan: Plan) -> Supervised:
    """The strategy that makes the predictions; plan: its replicas' settings decide about shapes.

    Raises ConfigError for settings that cannot work.
    """
    name = config.strategy.name
    known = registry.default_fields(name) if name else {}
    settings = {key: value for key, value in config.strategy.items() if key in known}
    return _MAKERS[name](config, _common(config, task), settings, plan)


def _usual(config: ConfigDict, common: dict[str, Any], settings: dict[str, Any], plan: Plan) -> Supervised:
    return strategy_class(_aggregator(common["module"]))(**common)


def _probe(config: ConfigDict, common: dict[str, Any], settings: dict[str, Any], plan: Plan) -> Supervised:
    return Supervised(**common, name=PROBE)  # it predicts; no step trains it


def _ibmil(config: ConfigDict, common: dict[str, Any], settings: dict[str, Any], plan: Plan) -> Supervised:
    kind = TwoTierIBMIL if strategy_class(_aggregator(common["module"])) is TwoTiers else IBMIL
    return kind(**common, confounders=IBMILSettings(**settings))


def _mhim(config: ConfigDict, common: dict[str, Any], settings: dict[str, Any], plan: Plan) -> Supervised:
    if config.train.instance_parallel > 1:
        raise ConfigError(
            "train.instance_parallel lets devices share a bag, and strategy.name=mhim ranks all its instances: leave it at 1"
        )
    masking = MHIMSettings(**settings)
    per_run = [masking.with_hyper(plan.replica_hyper(replica)) for replica in plan.replicas]
    masked = MergingMHIM if masking.merge_queries else MHIM
    return masked(**common, masking=masking, least_masked=min(one.least_masked() for one in per_run))


_MAKERS = {"": _usual, PROBE: _probe, "ibmil": _ibmil, "mhim": _mhim}  # by strategy.name


def make_phases(config: ConfigDict, task: Task, plan: Plan, selection: Selection) -> tuple[AnyPhase, ...]:
    """All phases, in their order."""
    strategy = make_strategy(config, task, plan)
    last, stages = Phase(strategy, config.train.epochs, selection), stage_names(config)
    phases: list[AnyPhase] = []
    if stages[0] in (TEACHER, BACKBONE):
        epochs = config.strategy[f"{stages[0]}_epochs"] or config.train.epochs
        phases.append(Phase(make_plain(config, task), epochs, selection))
    if ibmil_settings.DICTIONARY in stages:
        assert isinstance(strategy, IBMIL)
        phases.append(AnalysisPhase(MakeDictionary(make_plain(config, task), strategy)))
    least = min(phase.epochs for phase in (*phases, last) if isinstance(phase, Phase))
    if selection.first_epoch >= least:
        raise ConfigError(
            f"train.first_epoch={selection.first_epoch} leaves no epoch to choose where there are {least}: set it lower, from 0"
        )
    return *phases, last


def stage_names(config: ConfigDict) -> tuple[str, ...]:
    """What the phases are called; of one alone ("",)."""
    name = config.strategy.name
    if name == "mhim" and config.strategy.teacher == "train":
        return TEACHER, name
    if name == "ibmil" and not config.strategy.dictionary:
        made = (ibmil_settings.DICTIONARY, name)
        return (BACKBONE, *made) if config.strategy.backbone == ibmil_settings.TRAIN else made
    return ("",)


def make_plain(config: ConfigDict, task: Task) -> Supervised:
    """The plain run that a teacher or the embeddings come from."""
    common = _common(config, task)
    if config.strategy.name == "ibmil":
        return strategy_class(_aggregator(common["module"]))(**common, name=BACKBONE)
    return Supervised(**common, name=TEACHER)


def _aggregator(module: Aggregator) -> Aggregator:
    """The module, or the one behind a re-embedding."""
    return module.aggregator if isinstance(module, reembedding.Reembedded) else module


def _common(config: ConfigDict, task: Task) -> dict[str, Any]:
    """What all strategies are given; config: with train.precision as `resolve_precision` has it."""
    optimizer = {key: value for key, value in config.optimizer.items() if key not in ("lr", "weight_decay", "schedule")}
    fields = {key: value for key, value in config.aggregator.items() if key != "name"}
    aggregator = aggregators.create(config.aggregator.name, task.num_outputs, **fields)
    return {
        "module": reembedding.reembedded(aggregator, config.reembed),
        "task": task,
        "optimizer": optimizers.make(optimizers.OptimizerSettings(**optimizer)),
        "learning_rate": Schedule(**config.optimizer.schedule),
        "normalize": config.data.normalize,
        "class_weights": config.train.class_weights,
        "sample_instances": config.train.sample_instances,
        "microbatch_size": config.train.microbatch_size,
        "precision": config.train.precision,
    }


AUTO = "auto"


# Trained plainly; in benchmarks/results/precision-*.json their AUC differs by less than 0.005 on average over 5 seeds.
MEASURED = ("abmil", "clam_sb", "dsmil", "transmil")


def resolve_precision(config: ConfigDict) -> str:
    """`train.precision`, where it is "auto" the one that this device and aggregator get."""
    if config.train.precision != AUTO:
        return str(config.train.precision)
    plain = not config.strategy.name and not config.reembed.name
    measured = plain and config.aggregator.name in MEASURED
    return "bfloat16" if measured and jax.default_backend() == "gpu" else "float32"
