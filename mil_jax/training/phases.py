"""From a config to what is trained: the aggregator, the strategy, and the phases that it takes."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from mil_jax import aggregators
from mil_jax.aggregators import Aggregator, reembedding
from mil_jax.errors import ConfigError
from mil_jax.strategies import chosen, confounders
from mil_jax.strategies.confounders import Confounders
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.ibmil import IBMIL, MakeDictionary, TwoTierIBMIL
from mil_jax.strategies.masking import Masking
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_merging import MergingMHIM
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.base import Task
from mil_jax.training import optimizers
from mil_jax.training.engine_types import AnyPhase, Phase, SurveyPhase
from mil_jax.training.plan import Plan
from mil_jax.training.precision import chosen as chosen_precision
from mil_jax.training.schedule import Schedule
from mil_jax.training.stopping import Selection

STRATEGIES = {"supervised": Supervised, "dtfd": TwoTiers}  # that aggregators name for themselves
PROBE = "linear_probe"  # which no step trains: `training/probes.py`
TEACHER, BACKBONE = "teacher", "backbone"  # phases of plain runs, before those of MHIM-MIL and IBMIL


def strategy_class(aggregator: Aggregator) -> type[Supervised]:
    """How an aggregator is trained where the config chooses nothing: by the strategy that it names, or plainly supervised."""
    return STRATEGIES[aggregator.strategy]


def make_strategy(config: ConfigDict, task: Task, plan: Plan) -> Supervised:
    """The strategy that makes the predictions; plan: its replicas' settings decide about shapes.

    Raises ConfigError for settings that cannot work.
    """
    common = _common(config, task)
    if config.strategy.name == PROBE:
        return Supervised(**common, name=PROBE)
    plainly = strategy_class(_aggregator(common["module"]))
    if not config.strategy.name:
        return plainly(**common)
    known = chosen.default_fields(config.strategy.name)
    settings = {key: value for key, value in config.strategy.items() if key in known}
    if config.strategy.name == "ibmil":
        kind = TwoTierIBMIL if plainly is TwoTiers else IBMIL
        return kind(**common, confounders=Confounders(**settings))
    if config.train.bag_devices > 1:
        raise ConfigError(
            "train.bag_devices lets devices share a bag, and strategy.name=mhim ranks all its instances: leave it at 1"
        )
    masking = Masking(**settings)
    per_run = [masking.with_hyper(plan.replica_hyper(replica)) for replica in plan.replicas]
    masked = MergingMHIM if masking.merge_queries else MHIM
    return masked(**common, masking=masking, least_masked=min(one.least_masked() for one in per_run))


def make_phases(config: ConfigDict, task: Task, plan: Plan, selection: Selection) -> tuple[AnyPhase, ...]:
    """All phases, in their order."""
    strategy = make_strategy(config, task, plan)
    last, stages = Phase(strategy, config.train.epochs, selection), stage_names(config)
    phases: list[AnyPhase] = []
    if stages[0] in (TEACHER, BACKBONE):
        epochs = config.strategy[f"{stages[0]}_epochs"] or config.train.epochs
        phases.append(Phase(make_plain(config, task), epochs, selection))
    if confounders.DICTIONARY in stages:
        assert isinstance(strategy, IBMIL)
        phases.append(SurveyPhase(MakeDictionary(make_plain(config, task), strategy)))
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
        made = (confounders.DICTIONARY, name)
        return (BACKBONE, *made) if config.strategy.backbone == confounders.TRAIN else made
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
    """What all strategies are given."""
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
        "bags_at_a_time": config.train.bags_at_a_time,
        "precision": chosen_precision(config),
    }
