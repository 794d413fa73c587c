"""What the tests of data preparation share."""

from __future__ import annotations

import time

import openslide
import pytest


@pytest.fixture
def reading_when_closed(monkeypatch) -> list[int]:
    """How many threads were reading each slide that was closed; reading is slow."""
    reading: list[openslide.OpenSlide] = []
    found: list[int] = []
    read, close = openslide.OpenSlide.read_region, openslide.OpenSlide.close

    def slowly(self, *arguments):
        reading.append(self)
        time.sleep(0.02)
        try:
            return read(self, *arguments)
        finally:
            reading.remove(self)

    def closing(self):
        found.append(reading.count(self))
        while reading:  # or OpenSlide would abort this process
            time.sleep(0.01)
        close(self)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", slowly)
    monkeypatch.setattr(openslide.OpenSlide, "close", closing)
    return found
