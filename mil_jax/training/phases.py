"""From a config to what is trained: the aggregator, the strategy, and the phases that it takes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from mil_jax import aggregators
from mil_jax.aggregators import reembedding
from mil_jax.errors import ConfigError
from mil_jax.strategies import chosen
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.masking import Masking
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_merging import MergingMHIM
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.base import Task
from mil_jax.training import optimizers
from mil_jax.training.engine_types import Phase
from mil_jax.training.plan import Plan
from mil_jax.training.schedule import Schedule
from mil_jax.training.stopping import Selection

STRATEGIES = {"supervised": Supervised, "dtfd": TwoTiers}  # that aggregators name for themselves
PROBE = "linear_probe"  # which no step trains: `training/probes.py`
TEACHER = "teacher"  # the phase in which a plain run becomes one


def strategy_class(aggregator: nn.Module) -> type[Supervised]:
    """How an aggregator is trained where the config chooses nothing: by the strategy that it names, or plainly supervised."""
    return STRATEGIES[getattr(aggregator, "strategy", "supervised")]


def make_strategy(config: ConfigDict, task: Task, plan: Plan) -> Supervised:
    """The strategy that makes the predictions; plan: its replicas' settings decide about shapes.

    Raises ConfigError for settings that cannot work.
    """
    common = _common(config, task)
    if config.strategy.name == PROBE:
        return Supervised(**common, name=PROBE)
    if not config.strategy.name:
        aggregator = common["module"]
        if isinstance(aggregator, reembedding.Reembedded):
            aggregator = aggregator.aggregator
        return strategy_class(aggregator)(**common)
    if config.train.bag_devices > 1:
        raise ConfigError(
            "train.bag_devices lets devices share a bag, and strategy.name=mhim ranks all its instances: leave it at 1"
        )
    known = chosen.default_fields(config.strategy.name)
    masking = Masking(**{key: value for key, value in config.strategy.items() if key in known})
    per_run = [masking.with_hyper(plan.replica_hyper(replica)) for replica in plan.replicas]
    kind = MergingMHIM if masking.merge_queries else MHIM
    return kind(**common, masking=masking, least_masked=min(one.least_masked() for one in per_run))


def make_phases(config: ConfigDict, task: Task, plan: Plan, selection: Selection) -> tuple[Phase, ...]:
    """All phases, in their order."""
    last = Phase(make_strategy(config, task, plan), config.train.epochs, selection)
    if not trains_teacher(config):
        return (last,)
    return Phase(make_plain(config, task), config.strategy.teacher_epochs or config.train.epochs, selection), last


def make_plain(config: ConfigDict, task: Task) -> Supervised:
    """The plain run that a teacher comes from."""
    return Supervised(**_common(config, task), name=TEACHER)


def trains_teacher(config: ConfigDict) -> bool:
    """Whether a plain run comes first."""
    return config.strategy.name == "mhim" and config.strategy.teacher == "train"


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
        "precision": config.train.precision,
    }
