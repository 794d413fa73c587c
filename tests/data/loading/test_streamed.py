"""A streamed cohort gives the results of a resident one, bit for bit, in bounded memory, and ends its threads on every way out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from mil_jax.data.buckets import Ladder
from mil_jax.data.loading import resident as resident_module
from mil_jax.data.loading import resident_loader
from mil_jax.data.loading import streamed as streamed_module
from mil_jax.data.loading.resident import load_bags
from mil_jax.data.loading.resident_loader import LazyBags
from mil_jax.data.loading.streamed import THREAD_NAMES, WINDOWS, StreamedBags, StreamingLoader
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.engine import Engine
from mil_jax.engine.fit import fit, run_phases
from mil_jax.engine.types import EngineData, EngineSettings, FitResult, Phase
from mil_jax.errors import DataError, ShardError
from mil_jax.interop.slide_bag import Provenance, SlideBag
from mil_jax.strategies.supervised import COVARIATES
from tests.engine.cohorts import TASK, Silent, plan, strategy

VAL_LOSS = Selection("val_loss")
WIDTH, LONGEST = 6, 16
ROW_BYTES = WIDTH * 2 + 12
PLENTY = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 48 slides, float16, every second one with coordinates; the first tile of a slide tells its bag's class."""
    rng = np.random.default_rng(0)
    slides = []
    for number in range(48):
        n = int(rng.integers(2, 8))
        features = rng.standard_normal((n, WIDTH)).astype(np.float16)
        features[0, 0] += 4.0 * (number // 2 % 2)
        coords = rng.integers(0, 99, (n, 2)).astype(np.int32) if number % 2 else None
        provenance = Provenance(coordinate_unit="level0_pixels") if number % 2 else Provenance()
        slides.append(SlideBag(f"s{number}", features, coords, provenance))
    written = tmp_path_factory.mktemp("streaming") / "shards"
    write_shards(slides, written)
    return written


def data(folder: Path, most_bytes: int | None) -> EngineData:
    """24 bags of two slides each in buckets of 8 and 16, resident (None) or streamed."""
    shards = Shards.open(folder)
    slides = [np.array([2 * bag + 1, 2 * bag]) for bag in range(24)]
    sizes = resident_module.bag_sizes(shards, slides)
    ladder = Ladder((8, LONGEST), 0.0)
    number = np.arange(24)
    test = np.stack([number // 2 % 2 == k for k in range(2)]) & (number < 20)
    test |= number >= 22  # a fixed test set, which no fold trains on
    selection = ~test & (number // 4 % 3 == 2)
    return EngineData(
        bags=LazyBags(shards, slides, LONGEST) if most_bytes is None else StreamedBags(shards, slides, most_bytes),
        targets=(number % 2).astype(np.int32)[None],
        training=~test & ~selection,
        selection=selection,
        test=test,
        lengths=ladder.lengths,
        bucket=ladder.bucket(sizes),
    )


def one_step(batch_size: int = 1) -> int:
    """Bytes for windows of no more than one step."""
    return WINDOWS * batch_size * LONGEST * ROW_BYTES


def train(the_data: EngineData, listener: Silent | None = None, open_checkpoints=None, **settings) -> FitResult:
    phase = Phase(strategy(normalize="zscore"), 3, VAL_LOSS)
    return fit([phase], the_data, TASK, plan(), EngineSettings(**settings), listener or Silent(), open_checkpoints)


def assert_equal(one: FitResult, other: FitResult) -> None:
    same = ("state", "logits", "bags")
    jax.tree.map(np.testing.assert_array_equal, *({name: getattr(x, name) for name in same} for x in (one, other)))
    assert one.progress.to_json() == other.progress.to_json()


def streaming_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAMES)]


@pytest.fixture(scope="module")
def resident(folder) -> Callable[..., tuple[FitResult, Silent]]:
    """What a resident run with such settings ends with, and tells."""

    @functools.cache
    def trained(**settings) -> tuple[FitResult, Silent]:
        listener = Silent()
        return train(data(folder, None), listener, **settings), listener

    return trained


@pytest.mark.parametrize(
    ("batch_size", "wide", "axis"),
    [
        (1, False, "map"),
        (2, True, "map"),
        pytest.param(1, True, "map", marks=pytest.mark.full),
        pytest.param(2, False, "map", marks=pytest.mark.full),
        pytest.param(2, False, "vmap", marks=pytest.mark.full),
    ],
)
def test_streamed_is_bit_identical_to_resident(folder, resident, batch_size, wide, axis):
    settings = {"batch_size": batch_size, "replica_axis": axis}
    expected, told = resident(**settings)
    listener = Silent()
    found = train(data(folder, PLENTY if wide else one_step(batch_size)), listener, **settings)
    assert_equal(found, expected)
    assert listener.rows == told.rows
    assert found.facts["compilations"] == expected.facts["compilations"] == 2 * 2 + 1
    assert not streaming_threads()


@pytest.mark.full
def test_covariates_are_those_of_their_bag_also_when_streamed(folder):
    values = np.random.default_rng(1).normal(3, 2, (24, 2)).astype(np.float32)
    held, streamed = (
        train(dataclasses.replace(data(folder, most), covariates=values)) for most in (None, 2 * one_step())
    )
    assert_equal(held, streamed)
    assert np.abs(held.state[0][COVARIATES]["kernel"]).min() > 0


def test_all_programs_are_begun_to_be_compiled_before_bags_are_read_to_be_held(folder, resident, monkeypatch):
    begun = []

    def reading(*arguments, **named):
        begun.append(engine.programs.compilations)
        return load_bags(*arguments, **named)

    monkeypatch.setattr(resident_loader, "load_bags", reading)
    engine = Engine(data(folder, None), TASK, plan(), EngineSettings())
    found = run_phases(engine, [Phase(strategy(normalize="zscore"), 3, VAL_LOSS)], Silent())
    assert begun == [2 * 2]
    assert found.facts["compilations"] == 2 * 2 + 1
    assert_equal(found, resident(batch_size=1, replica_axis="map")[0])


def test_a_run_stopped_while_streaming_and_resumed_otherwise_ends_bit_identical(folder, resident, tmp_path):

    def checkpoints(name: str) -> Checkpoints:
        return Checkpoints(tmp_path / name, seconds=1e9)

    for most_bytes, stop_after in ((one_step(), 7), (None, 5), (one_step(), 30)):
        with pytest.raises(TrainingInterrupted):
            train(data(folder, most_bytes), Silent(stop_after=stop_after), checkpoints, replica_axis="map")
        assert not streaming_threads()
    expected, _ = resident(batch_size=1, replica_axis="map")
    assert_equal(train(data(folder, None), open_checkpoints=checkpoints, replica_axis="map"), expected)


def test_host_memory_is_that_of_the_windows_whatever_the_number_of_epochs_and_bags(folder, monkeypatch):
    allocated: list[int] = []

    def counting(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        allocated.append(int(np.prod(shape)) * dtype.itemsize)
        return plain(shape, dtype)

    plain = resident_module.aligned
    monkeypatch.setattr(resident_module, "aligned", counting)
    result = train(data(folder, one_step()))
    assert sum(allocated) == one_step() == result.facts["feature_bytes"]
    del allocated[:]
    result = train(data(folder, PLENTY))
    assert sum(allocated) == result.facts["feature_bytes"] <= PLENTY
    # four replicas: no slot has more than four bags
    assert sum(allocated) <= WINDOWS * 4 * LONGEST * ROW_BYTES


def test_windows_that_cannot_hold_one_step_are_refused_with_what_would_do(folder):
    with pytest.raises(DataError, match=r"data\.prefetch_gib=.* set it to at least 1\.07e-06"):
        train(data(folder, one_step() - 1))
    train_fitting = data(folder, one_step())
    with pytest.raises(DataError, match=r"one step needs up to 32 instances"):
        train(train_fitting, batch_size=2)


@pytest.mark.parametrize("slide", [0, 45], ids=["trained on", "of the fixed test set"])
def test_an_altered_record_is_named_in_the_first_epoch_and_the_threads_end(folder, tmp_path, slide):
    harmed = tmp_path / "shards"
    harmed.mkdir()
    for file in folder.iterdir():
        (harmed / file.name).write_bytes(file.read_bytes())
    opened = Shards.open(harmed)
    shard = next(harmed.glob("*.tfrecord*"))
    content = bytearray(shard.read_bytes())
    content[int(opened._records["features_offset"][slide])] ^= 1
    shard.write_bytes(bytes(content))
    listener = Silent()
    with pytest.raises(ShardError, match=rf"\(slide s{slide}\): checksum mismatch"):
        train(data(harmed, PLENTY), listener)
    assert not listener.rows, "before the first epoch is decided"
    assert not streaming_threads()


def test_each_record_is_checked_once(folder, monkeypatch):
    checked: list[int] = []
    verify = Shards.verify

    def counting(self: Shards, i: int) -> None:
        checked.append(i)
        verify(self, i)

    monkeypatch.setattr(Shards, "verify", counting)
    train(data(folder, PLENTY))
    assert sorted(checked) == list(range(48))


class Invented:
    """Stands in for shards of 32,769 slides of 65,536 instances: more than 2^31 together. Every value of slide i is i / 2^15."""

    num_instances = np.full(2**15 + 1, 2**16)
    feature_shape, dtype, num_parts = (1,), np.dtype(np.float32), 0

    def __len__(self) -> int:
        return len(self.num_instances)

    def verify(self, i: int) -> None:
        """Nothing to check."""

    def read_features(self, i: int, out: np.ndarray) -> None:
        out[:] = i / 2**15

    def read_coords(self, i: int) -> None:
        """There are none."""


def test_an_epoch_left_early_leaves_the_feed_usable(folder):
    the_data = data(folder, PLENTY)
    numbers = np.arange(24, dtype=np.int32)[None, :, None]
    step = np.arange(25)[:, None]
    runs = [(1, lo, hi) for lo, hi in itertools.pairwise(step)]
    order = dataclasses.make_dataclass("Order", ["bags", "dispatches"])(numbers, runs)
    with contextlib.closing(StreamingLoader(the_data.bags, (8, LONGEST), jax.device_put, order)) as loader:
        for _ in range(3):
            for piece in loader.windows(numbers, runs):
                assert int(piece.bags.bag(int(piece.lo[0]), LONGEST).num_instances) == the_data.bags.sizes[piece.lo[0]]
                if piece.lo[0] == 5:
                    break
        assert len([*loader.instances(np.arange(24))]) == 24


def test_a_cohort_of_more_than_two_billion_instances_is_streamed():
    shards = Invented()
    bags = StreamedBags(shards, [np.array([i]) for i in range(len(shards))], 1 << 24)
    numbers = np.array([[[len(shards) - 1]], [[7]]])
    runs = [(0, np.zeros(2, int), np.ones(2, int))]
    order = dataclasses.make_dataclass("Order", ["bags", "dispatches"])(numbers, runs)
    loader = StreamingLoader(bags, (2**16,), jax.device_put, order)
    (piece,) = loader.windows(numbers, runs)
    for number in (len(shards) - 1, 7):
        bag = piece.bags.bag(number, 2**16)
        np.testing.assert_array_equal(bag.features, number / 2**15)
    loader.close()
    assert streamed_module.THREAD_NAMES not in "".join(streaming_threads())


def test_graphs_are_streamed(tmp_path):
    coords = np.stack([np.arange(7) % 3, np.arange(7) // 3], axis=1).astype(np.int32)
    slides = [SlideBag(f"s{i}", np.full((i + 2, 1), i, np.float32), coords[: i + 2]) for i in range(6)]
    write_shards(slides, tmp_path / "shards", num_neighbors=4, for_tensorflow=False)
    shards = Shards.open(tmp_path / "shards")
    pairs = [np.array([2 * bag + 1, 2 * bag]) for bag in range(3)]
    resident = load_bags(shards, pairs, LONGEST, num_neighbors=3)
    numbers = np.arange(3).reshape(1, 3, 1)
    runs = [(0, np.zeros(1, int), np.full(1, 3))]
    order = dataclasses.make_dataclass("Order", ["bags", "dispatches"])(numbers, runs)
    bags = StreamedBags(shards, pairs, WINDOWS * LONGEST * (4 + 12 + 3 * 4), num_neighbors=3)
    seen = []
    with contextlib.closing(StreamingLoader(bags, (LONGEST,), jax.device_put, order)) as loader:
        for piece in loader.windows(numbers, runs):
            for number in range(int(piece.lo[0]), int(piece.hi[0])):
                bag, whole = piece.bags.bag(number, LONGEST), resident.bag(number, LONGEST)
                n = int(whole.num_instances)
                np.testing.assert_array_equal(bag.neighbors[:n], whole.neighbors[:n])
                seen.append(number)
    assert seen == [0, 1, 2]
