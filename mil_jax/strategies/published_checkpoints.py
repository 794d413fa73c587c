"""Published checkpoints of models to which a strategy adds parameters: the branch and the dictionary of IBMIL, the queries of MHIM-MIL v2.

A layout says which published form the aggregator has, and how the rest is called. Files go through `interop.torch_checkpoints`,
strictly: a key that does not match is an error.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mil_jax.aggregators.reembedding import Reembedded
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import StateDict, export_state_dict, import_state_dict
from mil_jax.layers.query_merging import QUERIES
from mil_jax.strategies.ibmil import BRANCH, IBMIL
from mil_jax.strategies.ibmil_settings import DICTIONARY
from mil_jax.strategies.mhim_merging import MERGING, MergingMHIM
from mil_jax.strategies.supervised import Supervised
from mil_jax.types import PyTree

Mapped = dict[str, tuple[str, str]]  # published name -> (path of the parameter, transform)


@dataclasses.dataclass(frozen=True)
class _OfIBMIL:
    """form: the aggregator's. query, key, dictionary, norm: names of the branch's own; its classifier has the name of the aggregator's,
    whose path is `classifier`. renamed: parts of the form's names that are others here.
    """

    form: str
    query: str = "W_q"
    key: str = "W_k"
    dictionary: str = "confounder_feat"
    norm: str = ""
    classifier: str = "classifier"
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


_CONFOUNDER = ("confounder_W_q", "confounder_W_k")
_IBMIL = {
    "ibmil_abmil": _OfIBMIL("pathgene"),
    "ibmil_dsmil": _OfIBMIL(
        "official", "b_classifier.confounder_W_q", "b_classifier.confounder_W_k", "b_classifier.confounder_feat"
    ),
    "ibmil_transmil": _OfIBMIL("transmil_original", *_CONFOUNDER, norm="norm2"),
    "ibmil_dtfd": _OfIBMIL(
        "dtfd",
        "att_classifier.W_q",
        "att_classifier.W_k",
        "att_classifier.confounder_feat",
        classifier="tier2/classifier",
        renamed={"att_classifier.classifier.fc.": "att_classifier.classifier."},
    ),
    "ibmil_mean_pooling": _OfIBMIL("mean_pooling", *_CONFOUNDER, renamed={"head.3.": "classifier."}),
    "ibmil_max_pooling": _OfIBMIL("max_pooling", *_CONFOUNDER, renamed={"head.3.": "classifier."}),
    "ibmil_mhim": _OfIBMIL(  # of the MHIM-MIL repository
        "mhim_dattention", renamed={"feature.0.": "embedding.embed.0.", "classifier.": "head."}
    ),
}
_MHIM_V2 = {  # layout -> the aggregator's form
    "mhim_v2_attn": "mhim_pure_attn",
    "mhim_v2_selfattn": "transmil_selfattn",
    "mhim_v2_dsmil": "mhim_pure_dsmil",
}
_MERGE: Mapped = {
    "merge.global_q_mm": (QUERIES, "tokens"),
    "merge.norm.weight": ("norm/scale", "same"),
    "merge.norm.bias": ("norm/bias", "same"),
    "merge.attn.to_kv.weight": ("key_value/kernel", "linear"),
    "merge.attn.to_q.weight": ("query/kernel", "linear"),
    "merge.attn.to_out.0.weight": ("output/kernel", "linear"),
    "merge.attn.to_out.0.bias": ("output/bias", "same"),
}
_TWICE = {"merge.global_q": "merge.global_q_mm"}  # one tensor under two names
LAYOUTS = (*_IBMIL, *_MHIM_V2)


def import_params(strategy: IBMIL | MergingMHIM, state_dict: Mapping[str, Any], layout: str) -> PyTree:
    """The strategy's parameters from a state dict of the published `layout` (LAYOUTS). The classifier of the aggregator, which IBMIL does
    not use and no file holds, is zero.

    Raises DataError naming missing, unexpected and wrongly shaped entries; ConfigError for a layout that is not the strategy's.
    """
    form = _form(strategy, layout)
    return form.whole(import_state_dict(form, state_dict, layout))


def export_params(strategy: IBMIL | MergingMHIM, params: PyTree, layout: str) -> StateDict:
    """The inverse of `import_params`: float32 arrays by published name. Raises as it does."""
    exported = export_state_dict(_form(strategy, layout), params, layout)
    return exported | {name: exported[same] for name, same in _TWICE.items() if same in exported}


def published_state_dict(strategy: Supervised, params: PyTree, layout: str = "") -> StateDict:
    """The parameters by the names of a published form, float32 arrays.

    layout: a variant of the aggregator, or one of LAYOUTS; the first that holds just these parameters where none is named.
    Raises ConfigError where none does, and for one that does not.
    """
    branched = isinstance(strategy, IBMIL | MergingMHIM)
    forms = [layout] if layout else LAYOUTS if branched else [*strategy.module.variants]
    for form in forms:
        try:
            if isinstance(strategy, IBMIL | MergingMHIM):
                return export_params(strategy, params, form)
            if len(strategy.module.state_dict_map(form)) == len(jax.tree.leaves(params)):
                return export_state_dict(strategy.module, params, form)
        except (ConfigError, DataError):
            continue
    raise ConfigError(
        f"{type(strategy.module).__name__} with these settings has no published PyTorch form {layout}".rstrip()
        + f"; there are: {', '.join(LAYOUTS if branched else strategy.module.variants) or 'none'}"
    )


def _form(strategy: IBMIL | MergingMHIM, layout: str) -> _Form:
    if isinstance(strategy.module, Reembedded):
        raise ConfigError("there are no published weights with reembed.name: leave it empty to import or export")
    own = _IBMIL if isinstance(strategy, IBMIL) else _MHIM_V2
    if layout not in own:
        raise ConfigError(f"layout {layout!r} is none of strategy.name={strategy.name}; choose one of {', '.join(own)}")
    return _WithBranch(strategy, layout) if isinstance(strategy, IBMIL) else _WithQueries(strategy, layout)


class _Form(abc.ABC):
    """The parameters that files hold, as `import_state_dict` asks for them."""

    def __init__(self, strategy: Any, layout: str) -> None:
        self.strategy, self.module, self.layout = strategy, strategy.module, layout

    @abc.abstractmethod
    def state_dict_map(self, variant: str) -> Mapped:
        """Of the aggregator and what the strategy adds."""

    @abc.abstractmethod
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """Published name -> shape of what is not read."""

    def whole(self, params: PyTree) -> PyTree:
        """With what the strategy has and no file holds."""
        return params

    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.module.feature_shape(self.whole(params))
        return shape

    def init(self, rngs: Any, bag: Bag) -> dict[str, PyTree]:
        """Zeros of the right shapes."""
        del rngs
        return {"params": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.strategy.parameter_shapes(bag))}


class _WithQueries(_Form):
    """MHIM-MIL v2: an aggregator and what merges its instances."""

    def state_dict_map(self, variant: str) -> Mapped:
        merging = {name: (f"{MERGING}/{path}", how) for name, (path, how) in _MERGE.items()}
        return {**self.module.state_dict_map(_MHIM_V2[variant]), **merging}

    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        unused = self.module.unused_entries(_MHIM_V2[variant])
        return unused | dict.fromkeys(_TWICE, (1, self.strategy.masking.merge_queries, self.module.feature_dim))


class _WithBranch(_Form):
    """IBMIL: an aggregator whose classifier the branch replaces."""

    @property
    def names(self) -> _OfIBMIL:
        return _IBMIL[self.layout]

    def state_dict_map(self, variant: str) -> Mapped:
        names = self.names
        mapping = {names.dictionary: (DICTIONARY, "same")}
        for name, (path, how) in self.module.state_dict_map(names.form).items():
            layer, _, leaf = path.rpartition("/")
            place = f"{BRANCH}/classifier/{leaf}" if layer == names.classifier else path
            mapping[self._renamed(name)] = (place, how)
        for layer, published in (("query", names.query), ("key", names.key)):
            mapping[f"{published}.weight"] = (f"{BRANCH}/{layer}/kernel", "linear")
            mapping[f"{published}.bias"] = (f"{BRANCH}/{layer}/bias", "same")
        if self.strategy.confounders.merged_norm and names.norm:
            mapping[f"{names.norm}.weight"] = (f"{BRANCH}/norm/scale", "same")
            mapping[f"{names.norm}.bias"] = (f"{BRANCH}/norm/bias", "same")
        return mapping

    def _renamed(self, name: str) -> str:
        for ours, theirs in self.names.renamed.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """The norm behind the merging, which TransMIL's file always holds."""
        if not self.names.norm or self.strategy.confounders.merged_norm:
            return {}
        width = 2 * self.module.feature_dim
        return {f"{self.names.norm}.{part}": (width,) for part in ("weight", "bias")}

    def whole(self, params: PyTree) -> PyTree:
        if BRANCH not in params or DICTIONARY not in params:
            return params
        flat, entry = flatten_dict(params, sep="/"), params[DICTIONARY].shape[-1]
        *others, _, outputs = params[BRANCH]["classifier"]["kernel"].shape
        flat[f"{self.names.classifier}/kernel"] = np.zeros((*others, entry, outputs), np.float32)
        flat[f"{self.names.classifier}/bias"] = np.zeros(outputs, np.float32)
        return unflatten_dict(flat, sep="/")

    def init(self, rngs: Any, bag: Bag) -> dict[str, PyTree]:
        flat = flatten_dict(super().init(rngs, bag)["params"], sep="/")
        held = {path: x for path, x in flat.items() if path.rpartition("/")[0] != self.names.classifier}
        return {"params": unflatten_dict(held, sep="/")}
