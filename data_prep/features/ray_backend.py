"""Encoding on a Ray cluster: as many encoders as are asked for, each an actor with its own devices, and slides dealt out one by one.

The unit of work, its files and its records are those of a single process, so the files are the same. A slide whose actor dies, or that
fails, is given to another, twice at most. All machines must see WORK and the slides under the same paths.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.features.encode_slide import EncodeSettings, SlideEncoder, inputs_of
from data_prep.jobs import FAILED, Records, Row, Slide
from mil_jax.errors import ConfigError, UserError

MOST_TRIES = 3


class Encoder:
    """What runs in an actor. The encoder is loaded with the first slide, so that what is wrong with it is an answer, not a death."""

    def __init__(self, records: Records, settings: EncodeSettings) -> None:
        self.records, self.settings = records, settings
        self.encoder: SlideEncoder | None = None

    def encode(self, slide: Slide) -> Row:
        """One slide's row."""
        self.encoder = self.encoder or SlideEncoder(self.records, self.settings)
        (row,) = self.encoder.run([slide])
        return row


def run_on_ray(
    slides: Sequence[Slide],
    records: Records,
    settings: EncodeSettings,
    workers: int,
    address: str = "",
) -> Iterator[Row]:
    """The rows of all slides as they become ready. address: of the cluster, empty: one on this machine, for as long as it lasts.

    Raises ConfigError where Ray is not installed or the cluster cannot be reached, and UserError as `SlideEncoder`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine=ray needs Ray: pip install 'mil-jax[ray]'") from error
    try:
        ray.init(address=address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types; each means that there is no cluster to work on
        where = (
            f"--ray-address={address}: no Ray cluster can be reached there" if address else "Ray cannot be started here"
        )
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where} ({reason})") from error
    try:
        yield from _deal_out(ray, slides, records, settings, workers)
    finally:
        ray.shutdown()


def _deal_out(
    ray: Any,
    slides: Sequence[Slide],
    records: Records,
    settings: EncodeSettings,
    workers: int,
) -> Iterator[Row]:
    of_cluster = ray.cluster_resources()
    share = {name: _share(of_cluster.get(name, 0) / workers) for name in ("CPU", "GPU")}
    remote = ray.remote(num_cpus=min(settings.threads, share["CPU"]), num_gpus=share["GPU"])(Encoder)
    waiting = list(reversed(slides))
    idle: list[Any] = []
    tries: Counter[str] = Counter()
    running: dict[Any, tuple[Any, Slide]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            slide = waiting.pop()
            tries[slide.slide_id] += 1
            worker = idle.pop() if idle else remote.remote(records, settings)
            running[worker.encode.remote(slide)] = worker, slide
        (ready, *_), _ = ray.wait(list(running))
        worker, slide = running.pop(ready)
        try:
            row = ray.get(ready)
            idle.append(worker)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError:
            reason = f"its process died {tries[slide.slide_id]} times; is there enough memory for so many --workers?"
            row = {"status": FAILED, "reason": reason}
            if tries[slide.slide_id] >= MOST_TRIES:
                row = records.write(slide, row, inputs_of(settings, slide), 0.0)
        if row["status"] == FAILED and tries[slide.slide_id] < MOST_TRIES:
            waiting.append(slide)
        else:
            yield row


def _share(part: float) -> float:
    """A worker's part of a resource: whole ones, or less than one, so that all workers find room."""
    return int(part) if part >= 1 else part
