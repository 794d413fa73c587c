"""Encoding on a Ray cluster: as many encoders as are asked for, each an actor with its own devices, and slides dealt out one by one.

The unit of work, its files and its records are those of a single process, so the files are the same. A slide whose actor dies, or that
fails, is given to another, twice at most. All machines must see WORK and the slides under the same paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.features.encode_slide import EncodeSettings, SlideEncoder, inputs_of
from data_prep.jobs import FAILED, Records, Row, Slide
from mil_jax.cli.ray_cluster import ray_cluster, worker_share
from mil_jax.errors import UserError

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
    with ray_cluster(address) as ray:
        yield from _deal_out(ray, slides, records, settings, workers)


def _deal_out(
    ray: Any,
    slides: Sequence[Slide],
    records: Records,
    settings: EncodeSettings,
    workers: int,
) -> Iterator[Row]:
    share = worker_share(ray, workers)
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
