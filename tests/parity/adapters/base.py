"""What an adapter is, and what most adapters need: padded bags, names of gradients, losses by the names the cases
use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.multilabel import MultiLabel
from tests.parity.case import Case


@dataclass
class Answer:
    """values: ours by the names of the case's stored arrays; more than are stored may be given.

    skipped: stored arrays that this formulation never forms -> reason.
    """

    values: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Adapter(Protocol):
    def bag_sizes(self, case: Case) -> list[int]:
        """Rows of each bag as stored, empty for a case without a bag: the bucket of a padded run must hold the
        largest.
        """

    def answer(self, case: Case, bucket: int | None) -> Answer:
        """Runs the case. With a bucket, every bag is padded to that many rows with NaN."""


def stack_bags(features: np.ndarray, lengths: list[int], bucket: int | None) -> Bag:
    """Bags [B, N, ...] of which the first lengths[b] rows are real -> a `Bag` with a leading axis B.

    Without a bucket the rows behind them stay as they are; with one they are NaN, and there are more of them.
    """
    mask = np.arange(bucket or features.shape[1]) < np.asarray(lengths)[:, None]  # [B, L]
    if bucket is not None:
        padded = np.full((len(features), bucket, *features.shape[2:]), np.nan, np.float32)
        padded[:, : features.shape[1]] = features
        features = np.where(mask.reshape(*mask.shape, *(1,) * (features.ndim - 2)), padded, np.nan)
    return Bag(jnp.asarray(features, jnp.float32), jnp.asarray(mask))


def bag_features(case: Case, name: str = "x") -> np.ndarray:
    """Bags of feature vectors [B, N, D], transformed where the case says so ("0.2*relu(x-1)", "abs(x)")."""
    x = case.input(name)
    if rule := case.config.get("input_transform"):
        parsed = re.fullmatch(r"(?:([\d.]+)\*)?(abs|relu)\(x([+-][\d.]+)?\)", rule.replace(" ", ""))
        if parsed is None:
            raise ValueError(f"no input transform is called {rule!r}")
        x = x + np.float32(parsed[3] or 0)
        x = np.float32(parsed[1] or 1) * (np.abs(x) if parsed[2] == "abs" else np.maximum(x, 0))
    return x.reshape((1,) * (3 - x.ndim) + x.shape)


def named_as_stored(case: Case, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the case's own parameter names: a model built without dropout numbers the layers of its Sequential
    otherwise.
    """
    ours, theirs = set(arrays), set(case.meta["params"])
    aliases = dict(zip(sorted(ours - theirs), sorted(theirs - ours), strict=True))
    return {aliases.get(name, name): value for name, value in arrays.items()}


def gradient_entries(gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients by published name -> the entries "grad/..." and "grad_norm/..."."""
    entries = {f"grad/{name}": value for name, value in gradients.items()}
    norms = {f"grad_norm/{name}": np.linalg.norm(np.asarray(value, np.float64)) for name, value in gradients.items()}
    return entries | norms


def classification_task(loss: str, num_outputs: int) -> Classification | MultiLabel:
    """The task for a loss as the cases call it: "ce...", "bce_logits...", "bernoulli"."""
    classes = tuple(str(number) for number in range(num_outputs))
    if loss.startswith("ce"):
        return Classification(classes, "cross_entropy")
    if loss.startswith("bce_logits"):
        return MultiLabel(classes)
    if loss == "bernoulli":
        return Classification(("0", "1"), "bernoulli")
    raise ValueError(f"no loss is called {loss!r}")


def class_targets(task: Classification, labels: Any, num_bags: int) -> jnp.ndarray:
    """Labels of B bags as a case gives them (numbers, or multi-hot lists) -> [B] int32, or [B, C] float32."""
    labels = np.asarray(labels)
    if task.loss_name == "binary_cross_entropy":
        return jnp.asarray(labels.reshape(num_bags, -1), jnp.float32)
    return jnp.asarray(labels.reshape(num_bags), jnp.int32)
