"""IBMIL, interventional bag MIL (Lin et al., CVPR 2023, arXiv 2303.06873), over any aggregator with a bag embedding.

Stage 1 trains the aggregator as it is; stage 2 clusters its embeddings of the training bags into a dictionary of confounders; stage 3
trains it again, with the branch of `layers/deconfounding.py` in place of its classifier: the bag embedding reads from the dictionary, and
both are classified (backdoor adjustment). Of stage 1 nothing but the dictionary stays. Losses of the aggregator on instances stay its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers.deconfounding import Deconfounding
from mil_jax.strategies.base import AnalysisResult, TrainingBags, TrainState
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.ibmil_clusters import clusters
from mil_jax.strategies.ibmil_settings import DICTIONARY, IBMILSettings
from mil_jax.strategies.supervised import COVARIATES, Supervised
from mil_jax.types import Array, PyTree

BRANCH = "deconfounding"  # an entry of the parameters, as is DICTIONARY, beside the aggregator's
BRANCH_STREAM = 2**32 - 2  # folded into a bag's key for the branch's dropout


@dataclasses.dataclass(frozen=True)
class IBMIL(Supervised):
    """Stage 3; settings as for `Supervised`, and `confounders`. The parameters are the aggregator's, as BRANCH the branch's, and the
    DICTIONARY, which moves only where it is learned. The aggregator's own classifier is not used.

    Predictions: `embedding` is what was classified; `aux["dictionary_attention"]` [k] or [k, C], over the entries.
    Reads from `hyper` also "strategy.dictionary_dropout".
    """

    confounders: IBMILSettings = dataclasses.field(default_factory=IBMILSettings)
    name: str = "ibmil"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._aggregator.chooses_by_logits:
            raise ConfigError(
                "strategy.name=ibmil replaces the aggregator's classifier, by which this one chooses its instances: set "
                "aggregator.choose=feature"
            )

    def read(self, prediction: Prediction) -> Array:
        """What of a prediction reads from the dictionary: [E] or [classes, E]; of DTFD [P, E], for P partitions of the bag."""
        if "partition_embedding" in prediction.aux:
            return prediction.aux["partition_embedding"]
        if self.confounders.merged_norm and "unnormalized_embedding" in prediction.aux:
            return prediction.aux["unnormalized_embedding"]
        if prediction.embedding is None:
            raise ConfigError(
                "strategy.name=ibmil clusters bag embeddings, and this aggregator has none: choose another"
            )
        return prediction.embedding

    @property
    def _branch(self) -> Deconfounding:
        return Deconfounding(
            self._aggregator.num_outputs,
            self.confounders.query_dim,
            self.confounders.merge,
            self.confounders.merged_norm,
            self.confounders.dictionary_dropout,
            self._aggregator.initializer,
        )

    def _first_params(self, key: Array, bag: Bag, previous: TrainState | None) -> PyTree:
        """previous: with the dictionary; None where shapes alone matter."""
        params = super()._first_params(key, bag, previous)
        seen = jax.eval_shape(
            lambda params, bag: self.read(super(IBMIL, self)._apply(params, {}, bag, None)), params, bag
        )
        embedding = jnp.zeros(self._shape_of_one(seen))
        dictionary = jnp.zeros((sum(self.confounders.numbers), *self._of_an_entry(embedding)))
        branch = self._branch.init({"params": jax.random.fold_in(key, 1)}, embedding, dictionary)["params"]
        given = dictionary if previous is None else previous.params[DICTIONARY]
        return {**params, BRANCH: branch, DICTIONARY: given}

    def _shape_of_one(self, read: Any) -> tuple[int, ...]:
        """Of what the branch gets at a time."""
        return tuple(read.shape)

    def _of_an_entry(self, embedding: Any) -> tuple[int, ...]:
        """The shape of an entry of the dictionary."""
        if self.confounders.mode == "agnostic":
            return tuple(embedding.shape[-1:])
        if embedding.ndim != 2:
            raise ConfigError(
                "strategy.mode=specific makes a dictionary for each class, and this aggregator has one embedding for all: use dsmil or "
                "clam_mb, or strategy.mode=agnostic"
            )
        return tuple(embedding.shape)

    def _apply(
        self, params: PyTree, hyper: dict[str, Array], bag: Bag, key: Array | None, module: Any = None
    ) -> Prediction:
        """The aggregator's prediction with the logits of the branch."""
        own = {name: value for name, value in params.items() if name not in (BRANCH, DICTIONARY, COVARIATES)}
        prediction = super()._apply(own, hyper, bag, key, module)
        logits, merged, attention = self._deconfounded(params, hyper, self.read(prediction), key)
        prediction = self._aggregator.with_bag_logits(prediction, logits)
        prediction = prediction.replace(embedding=merged, aux={**prediction.aux, "dictionary_attention": attention})
        return self._with_covariates(params, bag, prediction)

    def _deconfounded(
        self, params: PyTree, hyper: dict[str, Array], embedding: Array, key: Array | None
    ) -> tuple[Array, Array, Array]:
        """What the branch says of an embedding."""
        dictionary = params[DICTIONARY]
        if not self.confounders.learn_dictionary:
            dictionary = jax.lax.stop_gradient(dictionary)
        rates = {name.partition(".")[2]: rate for name, rate in hyper.items() if name.startswith("strategy.")}
        rngs = None if key is None else {"dropout": jax.random.fold_in(key, BRANCH_STREAM)}
        said: Any = self._branch.apply(
            {"params": params[BRANCH], "hyper": rates}, embedding, dictionary, train=key is not None, rngs=rngs
        )
        return said

    def _moved(self, params: PyTree, updates: PyTree) -> PyTree:
        moved: PyTree = super()._moved(params, updates)
        return moved if self.confounders.learn_dictionary else {**moved, DICTIONARY: params[DICTIONARY]}


@dataclasses.dataclass(frozen=True)
class TwoTierIBMIL(IBMIL, TwoTiers):
    """Over DTFD: the second tier reads from the dictionary, and is one network with the branch."""

    name: str = "ibmil"

    def _shape_of_one(self, read: Any) -> tuple[int, ...]:
        return tuple(read.shape[1:])

    def _deconfounded(
        self, params: PyTree, hyper: dict[str, Array], embedding: Array, key: Array | None
    ) -> tuple[Array, Array, Array]:
        """Of each partition; embedding and attention are means over them."""
        of_one = super()._deconfounded
        logits, merged, attention = jax.vmap(lambda one: of_one(params, hyper, one, key))(embedding)
        return logits, jnp.mean(merged, axis=0), jnp.mean(attention, axis=0)

    def _networks(self, tree: PyTree) -> dict[str, PyTree]:
        own = {name: value for name, value in tree.items() if name not in (BRANCH, DICTIONARY)}
        networks = super()._networks(own)
        return {**networks, "tier2": {"own": networks["tier2"], BRANCH: tree[BRANCH], DICTIONARY: tree[DICTIONARY]}}

    def _as_params(self, networks: dict[str, PyTree]) -> PyTree:
        second = networks["tier2"]
        own = super()._as_params({**networks, "tier2": second["own"]})
        return {**own, BRANCH: second[BRANCH], DICTIONARY: second[DICTIONARY]}


@dataclasses.dataclass(frozen=True)
class MakeDictionary:
    """Stage 2: the embeddings that `backbone`, the strategy of stage 1, gives the training bags are clustered into the dictionary that
    `deconfounded`, that of stage 3, reads.
    """

    backbone: Supervised
    deconfounded: IBMIL
    name: str = DICTIONARY

    def constants(self, training: TrainingBags) -> PyTree:
        """What the backbone fits to the training bags."""
        return self.backbone.constants(training)

    def predict(self, state: TrainState, bag: Bag) -> Prediction:
        """A bag's embedding [E] or [classes, E], as logits."""
        embedding = self.deconfounded.read(self.backbone.predict(state, bag))
        if isinstance(self.deconfounded, TwoTierIBMIL):
            embedding = jnp.mean(embedding, axis=0)
        return Prediction(embedding.astype(jnp.float32))

    def analyze(self, seen: np.ndarray) -> AnalysisResult:
        """seen: [n, E] or [n, classes, E], the embeddings of a run's n training bags. Those of several classes are clustered together, or
        class by class, as `mode` says. Found: the dictionary [k, E] or [k, classes, E], and in which "cluster" [n, clusterings, classes]
        each bag is.
        """
        confounders = self.deconfounded.confounders
        by_class = seen if seen.ndim == 3 else seen[:, None]  # [n, classes, E]
        entries, cluster = [], []
        for number in confounders.numbers:
            if confounders.mode == "specific":
                own = [clusters(by_class[:, c], number) for c in range(by_class.shape[1])]
                entries.append(np.stack([one.entries for one in own], axis=1))
                cluster.append(np.stack([one.cluster for one in own], axis=1))
            else:
                together = clusters(by_class.reshape(-1, by_class.shape[-1]), number)
                entries.append(together.entries)
                cluster.append(together.cluster.reshape(by_class.shape[:2]))
        found = np.stack(cluster, axis=1)
        sizes = [np.bincount(of_one[of_one >= 0], minlength=1) for of_one in cluster]
        return AnalysisResult(
            {DICTIONARY: np.concatenate(entries)},
            {"cluster": found},
            {
                "smallest_cluster": float(min(size.min() for size in sizes)),
                "largest_cluster": float(max(size.max() for size in sizes)),
            },
        )
