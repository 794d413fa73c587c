"""Reading ahead across slides: one thread reads the batches of all slides in order while others are encoded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Self

from data_prep.features.encoder import Batch
from data_prep.jobs import Slide

DEPTH = 4  # batches that wait at most
_SECONDS = 0.2  # between looks at whether anybody still waits for batches


class _End:
    """Behind the last batch of a slide."""


class Prefetcher:
    """The batches of slides, read in a thread of its own; a context that ends the thread.

    read: the batches of one slide; what it raises is raised to whoever takes this slide's batches, and the next slide is read.
    """

    def __init__(self, slides: Sequence[Slide], read: Callable[[Slide], Iterator[Batch]]) -> None:
        self._slides, self._read = slides, read
        self._queue: queue.Queue[tuple[str, Batch | _End | BaseException]] = queue.Queue(DEPTH)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def batches(self, slide: Slide) -> Iterator[Batch]:
        """The batches of a slide. Slides are asked for in their order; what was not taken of those before is left out."""
        while True:
            slide_id, item = self._queue.get()
            if slide_id != slide.slide_id:
                continue
            if isinstance(item, _End):
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        for slide in self._slides:
            try:
                for batch in self._read(slide):
                    if not self._put(slide, batch):
                        return
                self._put(slide, _End())
            except BaseException as error:
                self._put(slide, error)

    def _put(self, slide: Slide, item: Batch | _End | BaseException) -> bool:
        """Waits for a place in the queue; False when the reader is to end."""
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put((slide.slide_id, item), timeout=_SECONDS)
                return True
        return False
