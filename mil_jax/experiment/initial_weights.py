"""What the first phase begins with, where it comes from elsewhere: weights of a teacher or a backbone, or dictionaries of confounders."""

from __future__ import annotations

from mil_jax.bags import Bag
from mil_jax.data.splits.splits import TEST
from mil_jax.experiment import ibmil_dictionary
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.phases import make_plain, make_strategy
from mil_jax.experiment.pretrained_weights import InitialWeights, TargetRun, load_weights, weights_source
from mil_jax.strategies.ibmil_settings import DICTIONARY


def load_initial_weights(experiment: Experiment, bag: Bag) -> InitialWeights | None:
    """For every run, or None where nothing comes from elsewhere; bag: of shapes.

    Raises UserError where it does not fit, or has seen what it must not.
    """
    config, task, plan = experiment.config, experiment.task, experiment.plan
    weights, dictionary = weights_source(config), ibmil_dictionary.source(config)
    if weights is None and dictionary is None:
        return None
    ids, on_test = experiment.cohort.bags["bag_id"].to_numpy(), experiment.selection_part == TEST
    targets = [
        TargetRun.of(
            experiment.run_name(run),
            run,
            experiment.targets[run.target],
            ids,
            experiment.parts[experiment.row(run)],
            on_test,
        )
        for run in plan.replicas
    ]
    if weights:
        return load_weights(weights, config, make_plain(config, task), bag, targets)
    assert dictionary is not None
    expected = make_strategy(config, task, plan).parameter_shapes(bag)[DICTIONARY]
    return ibmil_dictionary.load(dictionary, config.data.normalize, expected, targets)
