"""The settings of IBMIL: how the dictionary of confounders is made, and how a bag embedding reads from it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from mil_jax.errors import ConfigError
from mil_jax.layers.deconfounding import MERGES

MODES = ("agnostic", "specific")
TRAIN = "train"
DICTIONARY = "dictionary"  # the stage that makes it, and its entry of the parameters


@dataclasses.dataclass(frozen=True)
class IBMILSettings:
    """clusters: how many clusters of bag embeddings, each an entry of the dictionary; several numbers with commas are clusterings of their
        own, whose entries are put together.
    mode: "agnostic" (one dictionary for all classes) or "specific" (one for each class, of an aggregator with an embedding per class).
    merge: what is classified: the embedding and what it read side by side ("cat"), their sum ("add") or difference ("sub").
    merged_norm: a LayerNorm behind that, in place of the one before the aggregator's classifier where it has one.
    query_dim: width in which embedding and entries are compared.
    learn_dictionary: the dictionary is trained, too; else it stays as it was made.
    dictionary_dropout: of the entries where they are compared.
    backbone: "train" (the aggregator as it is, for every fold and seed, for `backbone_epochs`, 0 = train.epochs), or a run folder or
        PyTorch file with its weights: what gives the embeddings that are clustered.
    dictionary: empty: made from them; or a run folder of IBMIL whose dictionaries are used, or a .npy file of one for all runs.

    Raises ConfigError for values that cannot work.
    """

    clusters: str = "8"
    mode: str = "agnostic"
    merge: str = "cat"
    merged_norm: bool = False
    query_dim: int = 128
    learn_dictionary: bool = False
    dictionary_dropout: float = 0.0
    backbone: str = TRAIN
    backbone_epochs: int = 0
    dictionary: str = ""

    numeric_settings: ClassVar[tuple[str, ...]] = ("dictionary_dropout",)

    def __post_init__(self) -> None:
        _ = self.numbers
        for name, choices in (("mode", MODES), ("merge", MERGES)):
            value = getattr(self, name)
            _require(name, value, value in choices, f"is unknown; choose one of {', '.join(choices)}")
        _require("query_dim", self.query_dim, self.query_dim >= 1, "must be positive")
        _require("backbone_epochs", self.backbone_epochs, self.backbone_epochs >= 0, "must not be negative")
        rate = self.dictionary_dropout
        _require("dictionary_dropout", rate, 0 <= rate < 1, "must lie in [0, 1)")
        if not self.backbone:
            raise ConfigError("strategy.backbone is empty: set it to train, or a run folder or PyTorch file")
        if self.dictionary and self.backbone != TRAIN:
            raise ConfigError(
                "strategy.dictionary and strategy.backbone are both set: with a dictionary that is there no backbone is needed, leave "
                "one of them out"
            )

    @property
    def numbers(self) -> tuple[int, ...]:
        """The clusters of each clustering."""
        parts = self.clusters.split(",")
        if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(
                f"strategy.clusters={self.clusters!r} must be a positive whole number, or several with commas"
            )
        return tuple(int(part) for part in parts)


def _require(name: str, value: Any, holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(f"strategy.{name}={value!r} {what}")
