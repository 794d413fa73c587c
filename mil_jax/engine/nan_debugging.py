"""Where a run stops being finite: the epoch in which that happened is gone through again, one step at a time.

The programs are the ones that trained, so on a CPU every step gives the same bits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.data.loading.windows import Dispatch
from mil_jax.types import Array, PyTree


class NotFinite(Exception):
    """What `find` found. replica, step: their numbers, the step counted within its epoch; bags: the numbers of its bags.

    loss: whether it is the loss that is not finite; else it is what the update made of the parameters. step is None where the
    epoch, gone through again, was finite.
    """

    def __init__(self, replica: int, epoch: int, step: int | None, bags: np.ndarray, loss: bool) -> None:
        super().__init__(f"replica {replica}, epoch {epoch}, step {step}")
        self.replica, self.epoch, self.step, self.bags, self.loss = replica, epoch, step, bags, loss

    def sentence(self, run: str, bag_ids: np.ndarray) -> str:
        """For the user. run: "fold 0, seed 1"; bag_ids: of all bags."""
        if self.step is None:
            return (
                f"run {run}: epoch {self.epoch + 1} was not finite, but was when repeated: set train.replica_axis=map"
            )
        what = "the loss is" if self.loss else "the loss is finite, but its update of the parameters is"
        return (
            f"run {run}: {what} not finite any more in epoch {self.epoch + 1}, step {self.step + 1}, at bag "
            f"{', '.join(bag_ids[self.bags])}: look at the features of that bag (data_prep.shard reports on them), or lower "
            "optimizer.lr, or set optimizer.clip_norm"
        )


@jax.jit
def finite_replicas(tree: PyTree) -> Array:
    """bool [R]: whether all numbers of a replica are finite. Each leaf has the leading axis [R]."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in leaves]).all(axis=0)


def find(
    suspects: np.ndarray,
    bags: np.ndarray,
    epoch: int,
    dispatches: Sequence[Dispatch],
    carry: PyTree,
    train: Callable[[PyTree, Dispatch], PyTree],
    fetch: Callable[[PyTree], Any],
) -> NotFinite:
    """The first step of the first of the `suspects` [R] to fail.

    bags: [R, T, B], the order of the epoch. dispatches: those of the epoch, from the one that `carry` stands before. train: sends a
    dispatch.
    """
    for dispatch in _single_steps(dispatches, suspects):
        _, lo, hi = dispatch
        carry = train(carry, dispatch)
        losses, finite = fetch((carry.metrics["loss"], finite_replicas(carry.state.params)))
        for r in np.flatnonzero(suspects):
            if hi[r] > lo[r] and not (np.isfinite(losses[r]) and finite[r]):
                numbers = bags[r, lo[r]]
                return NotFinite(int(r), epoch, int(lo[r]), numbers[numbers >= 0], not np.isfinite(losses[r]))
    return NotFinite(int(np.flatnonzero(suspects)[0]), epoch, None, bags[0, 0][:0], True)


def _single_steps(dispatches: Sequence[Dispatch], suspects: np.ndarray) -> Iterator[Dispatch]:
    """The steps of the suspects, one in a dispatch; the others idle."""
    for bucket, lo, hi in dispatches:
        count = np.where(suspects, hi - lo, 0)
        for step in range(int(count.max())):
            yield bucket, lo + np.minimum(step, count), lo + np.minimum(step + 1, count)
