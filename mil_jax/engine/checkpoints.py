"""Checkpoints: a run is saved and restored with orbax, asynchronous, atomic, two kept. Of several processes the first writes, all read.

What is saved is the replicas' state without those that only fill the mesh, and the place in training: phase, epoch, dispatch and
the host's decisions. Keys, orders and schedules are not saved: they follow from the plan.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mil_jax.engine.distributed import is_first
from mil_jax.errors import RunFolderError
from mil_jax.types import PyTree

_BYTES_BESIDE_ARRAYS = 1 << 20  # orbax's own files and `place`


def read_final(checkpoints: Path) -> tuple[PyTree, PyTree, list[dict[str, Any]]]:
    """What the runs of a run folder chose: the parameters and the constants, the runs on a leading axis, and of each its fold, seed and
    ids.

    Raises RunFolderError when there is nothing.
    """
    folder = checkpoints / "final"
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: there are no chosen parameters; finish the run with --resume")
    try:
        with ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(create=False)) as manager:
            parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(), place=ocp.args.JsonRestore())
            restored = manager.restore(manager.latest_step(), args=parts)
        arrays = jax.tree.map(np.asarray, restored["arrays"])
        return arrays["params"], arrays.get("constants") or {}, restored["place"]["runs"]
    except Exception as error:  # orbax and TensorStore raise many kinds; each means that the files are damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFolderError(
            f"{folder}: the chosen parameters cannot be read ({reason}); restore them, or train again"
        ) from error


class Checkpoints:
    """The checkpoints of one phase below a run folder. `seconds`: the least time between two saves."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self._saved_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        me = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=False,
            # Arrays come from the host and are the same in every process: orbax is not to wait for the others.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
            ),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=is_first(),  # what a killed run left half-written
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def due(self) -> bool:
        """Whether enough time has passed since the last save."""
        return time.monotonic() - self._saved_at >= self.seconds

    def save(self, number: int, arrays: PyTree, place: dict[str, Any], *, wait: bool = False) -> None:
        """Saves host arrays and a JSON-able `place` under an ascending `number`; `wait` for it to be on disk.

        Raises RunFolderError when the disk is full.
        """
        self._saved_at = time.monotonic()
        if not is_first():
            return
        with self._full_disk_as_error():
            self._manager.wait_until_finished()
            if self._manager.latest_step() != number:
                # Looked at beforehand: a writer that meets a full disk midway reports it from many threads at once.
                needed = sum(x.nbytes for x in jax.tree.leaves(arrays)) + _BYTES_BESIDE_ARRAYS
                if shutil.disk_usage(self.folder).free < needed:
                    raise OSError(errno.ENOSPC, "no space for a checkpoint")
                parts = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), place=ocp.args.JsonSave(place))
                self._manager.save(number, args=parts, force=True)
            if wait:
                self._manager.wait_until_finished()

    def place(self, runs: list[str] | None = None) -> dict[str, Any] | None:
        """Where the newest whole checkpoint stands, or None when there is none. runs: those that it must be of, in words, if given.

        Raises RunFolderError when it is of others.
        """
        number = self._manager.latest_step()
        if number is None:
            return None
        place: dict[str, Any] = self._manager.restore(number, args=ocp.args.Composite(place=ocp.args.JsonRestore()))[
            "place"
        ]
        if runs is not None and place["runs"] != runs:
            other = next((one for one in place["runs"] if one not in runs), "in another order")
            raise RunFolderError(
                f"{self.folder}: the checkpoint is of {len(place['runs'])} runs ({other}, ...), not of the {len(runs)} runs to be "
                "trained; go on with the settings that it was begun with, or name another folder"
            )
        return place

    def as_saved(self) -> PyTree:
        """The arrays of the newest checkpoint, on the host."""
        restore = ocp.args.Composite(arrays=ocp.args.StandardRestore())
        arrays: PyTree = self._manager.restore(self._manager.latest_step(), args=restore)["arrays"]
        return jax.tree.map(np.asarray, arrays)

    def arrays(self, like: PyTree) -> PyTree:
        """The arrays of the newest checkpoint, on the host. `like`: the tree of their shapes and dtypes.

        Raises RunFolderError when they have others.
        """
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restore = ocp.args.Composite(arrays=ocp.args.StandardRestore(template))
        other = RunFolderError(
            f"{self.folder}: the checkpoint is of another model or optimiser; go on with the settings that it was begun with, or name "
            "another folder"
        )
        try:
            arrays = self._manager.restore(self._manager.latest_step(), args=restore)["arrays"]
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            raise other from error
        # Orbax compares the trees, not the shapes.
        if jax.tree.map(np.shape, arrays) != jax.tree.map(np.shape, template):
            raise other
        return arrays

    def close(self) -> None:
        """Waits for what is being written. Raises RunFolderError when the disk is full."""
        with self._full_disk_as_error():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextmanager
    def _full_disk_as_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else None
            if number not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
                raise
            raise RunFolderError(f"{self.folder}: the disk is full; free some space and go on with --resume") from error
