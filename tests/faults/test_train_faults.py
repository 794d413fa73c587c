"""Whatever is wrong with what a user gives the training command: one sentence, exit code 2, nothing half-written, no file changed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax import train
from mil_jax.engine import checkpoints
from tests.commands import SMALL, contents, run
from tests.invented import Invented, invent, write_labels, write_plain

USUAL = ("--config.data.features=features", "--config.data.labels=labels.csv", "--config.data.target=subtype")
SHARDS = ("--config.data.shards=shards", *USUAL[1:])
Mend = Callable[[Path, pd.DataFrame], object]


@dataclasses.dataclass(frozen=True)
class Fault:
    """said: what the sentence must hold. arguments: beside the usual ones. harm: what is done to the user's folder beforehand.

    data: the settings that name the data.
    """

    said: str
    arguments: Sequence[str] = ()
    harm: Mend = lambda home, table: None
    data: Sequence[str] = USUAL


def relabel(**columns: object) -> Mend:
    """Writes a label table in which columns are replaced."""
    return lambda home, table: table.assign(**columns).to_csv(home / "labels.csv", index=False)


def put(name: str, content: bytes | str) -> Mend:
    return lambda home, table: (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def feature_file(home: Path, number: int = 0) -> Path:
    return sorted((home / "features").iterdir())[number]


def not_finite(home: Path, table: pd.DataFrame) -> None:
    for number, row in ((0, 1), (3, 2)):
        features = np.load(feature_file(home, number))
        features[row, 0] = np.nan
        np.save(feature_file(home, number), features)


def split_by_slides(home: Path, table: pd.DataFrame) -> None:
    """Marks one slide of a patient that has several as a test slide."""
    torn = table["slide_id"][table["case_id"].duplicated()].iloc[0]
    relabel(official=np.where(table["slide_id"] == torn, "test", "train"))(home, table)


def split_by_class(home: Path, table: pd.DataFrame) -> None:
    """A published split whose training part has one class only."""
    parts = np.where(table["subtype"] == "LUSC", "test", "train")
    table.assign(fold_0=parts)[["slide_id", "fold_0"]].to_csv(home / "folds.csv", index=False)


def shard(home: Path) -> Path:
    (path,) = (home / "shards").glob("*.tfrecord-*")
    return path


def flip_a_bit(home: Path, table: pd.DataFrame) -> None:
    offset = int(pd.read_csv(home / "shards" / "records.csv")["features_offset"].iloc[2])
    content = bytearray(shard(home).read_bytes())
    content[offset + 5] ^= 0x10
    status = shard(home).stat()
    shard(home).write_bytes(content)
    os.utime(shard(home), ns=(status.st_atime_ns, status.st_mtime_ns))


def other_shard(home: Path, table: pd.DataFrame) -> None:
    """A shard written later than its index: the same size, other content."""
    content = shard(home).read_bytes()
    place = len(content) - 2  # in the last record's checksum
    shard(home).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    os.utime(shard(home))


FAULTS = {
    "a positional argument": Fault("'labels.csv' is no option", ["labels.csv"]),
    "an unknown flag": Fault("Did you mean: check", ["--chek"]),
    "an unknown setting": Fault("did you mean --config.optimizer.lr?", ["--config.optimiser.lr=1"]),
    "a setting without value": Fault("write --config.train.epochs=VALUE", ["--config.train.epochs", "5"]),
    "a wrong type": Fault("--config.train.epochs=many must be a whole number", ["--config.train.epochs=many"]),
    "a wrong truth value": Fault("must be true or false", ["--config.train.balanced_sampling=perhaps"]),
    "no seeds": Fault("train.num_seeds=0 must be at least 1", ["--config.train.num_seeds=0"]),
    "no epochs": Fault("train.epochs=0 must be at least 1", ["--config.train.epochs=0"]),
    "no bags a step": Fault("train.batch_size=0 must be at least 1", ["--config.train.batch_size=0"]),
    "a negative seed": Fault("train.seed=-1 must be at least 0", ["--config.train.seed=-1"]),
    "a rate that is no number": Fault("optimizer.lr=nan must be a finite number", ["--config.optimizer.lr=nan"]),
    "a negative rate": Fault("optimizer.lr=-1.0 must be at least 0", ["--config.optimizer.lr=-1"]),
    "an unknown precision": Fault("choose one of default, high", ["--config.train.matmul_precision=best"]),
    "an unknown selection": Fault("choose one of last, val_loss", ["--config.train.monitor=best"]),
    "an unknown protocol": Fault("choose one of clean, reference", ["--config.train.protocol=mine"]),
    "an unknown split": Fault("did you mean 'k_fold'", ["--config.splits.kind=kfold"]),
    "one fold": Fault("splits.folds=1", ["--config.splits.folds=1"]),
    "more folds than patients": Fault("use fewer folds", ["--config.splits.folds=400"]),
    "an unknown optimiser": Fault("optimizer.name='adm'", ["--config.optimizer.name=adm"]),
    "an unknown schedule": Fault("optimizer.schedule.name", ["--config.optimizer.schedule.name=cosin"]),
    "an unknown normalisation": Fault("data.normalize", ["--config.data.normalize=z"]),
    "an unknown aggregator": Fault("did you mean 'abmil'", ["--config.aggregator.name=abmill"]),
    "an unknown aggregator's setting": Fault("aggregator.attention_dim?", ["--config.aggregator.atention_dim=4"]),
    "another aggregator's setting": Fault("'mean_pooling'", ["--config.aggregator.name=mean_pooling"]),
    "a dropout of more than all": Fault("aggregator.dropout=1.5", ["--config.aggregator.dropout=1.5"]),
    "a loss for two classes of a sort": Fault("task.loss_name", ["--config.task.loss_name=hinge"]),
    "several labels, one loss": Fault(
        "choose one of binary_cross_entropy",
        [
            *("--config.data.target=mutated,smoker", "--config.task.name=multilabel"),
            "--config.task.loss_name=cross_entropy",
        ],
    ),
    "label columns of two and of three classes": Fault(
        "train it in a run of its own",
        ["--config.data.target=mutated,smoker,subtype"],
        relabel(subtype=lambda table: table["age"] % 3),
    ),
    "one of several label columns without a second class": Fault(
        "label column 'mutated'", ["--config.data.target=mutated,smoker"], relabel(mutated=1)
    ),
    "a pattern that finds nothing": Fault(
        "no column of the label table matches 'mut_*'", ["--config.data.target=mut_*"]
    ),
    "a pattern that finds nothing to train": Fault(
        "none of its 2 columns can be trained", ["--config.data.target=mut*"], relabel(mutated=1, mutant=0)
    ),
    "a column named twice": Fault("names column 'mutated' twice", ["--config.data.target=mutated,smoker,mutated"]),
    "a model for other features": Fault("aggregator.feature_layer", ["--config.aggregator.feature_layer=lenet"]),
    "several labels in one column": Fault("name them in data.target", ["--config.task.name=multilabel"]),
    "weights for several labels": Fault(
        "train.class_weights needs classes",
        [
            *("--config.data.target=mutated,smoker", "--config.task.name=multilabel"),
            "--config.train.class_weights=true",
        ],
    ),
    "a cache that is a file": Fault("data.cache", ["--config.data.cache=labels.csv"]),
    "patience without validation": Fault(
        "train.patience needs a validation score", ["--config.train.monitor=last", "--config.train.patience=3"]
    ),
    "selection without validation": Fault("(splits.val_fraction=0): raise it", ["--config.splits.val_fraction=0"]),
    "resume and overwrite": Fault("exclude each other", ["--resume", "--overwrite"]),
    "labels without features": Fault("data.labels is set but no features are", data=USUAL[1:]),
    "features and shards": Fault("name the one to train on", ["--config.data.shards=shards"]),
    "own splits for the embedded digits": Fault("their own five folds", ["--config.splits.kind=monte_carlo"], data=()),
    "a package that is not there": Fault("mil-jax[wandb]", ["--config.train.wandb=true"]),
    "no feature folder": Fault("nowhere", data=("--config.data.features=nowhere", *USUAL[1:])),
    "no shard folder": Fault("nowhere", data=("--config.data.shards=nowhere", *USUAL[1:])),
    "a feature folder without features": Fault(
        "empty", harm=lambda home, table: (home / "empty").mkdir(), data=("--config.data.features=empty", *USUAL[1:])
    ),
    "an unreadable feature file": Fault(
        "cannot be read", harm=lambda home, table: feature_file(home).write_bytes(b"no array")
    ),
    "a feature file cut short": Fault(
        "cannot be read",
        harm=lambda home, table: os.truncate(feature_file(home), feature_file(home).stat().st_size - 9),
    ),
    "features that are not finite": Fault("rows 1; slide ", harm=not_finite),
    "features of two widths": Fault(
        "4 features; all slides", harm=lambda home, table: np.save(feature_file(home), np.zeros((5, 4), np.float32))
    ),
    "a slide in two files": Fault(
        "occurs twice", harm=lambda home, table: np.savez(feature_file(home).with_suffix(".npz"), np.ones((3, 8)))
    ),
    "no label table": Fault("labels.csv: no such file", harm=lambda home, table: (home / "labels.csv").unlink()),
    "a label table that is no text": Fault("not UTF-8", harm=put("labels.csv", b"slide_id,subtype\n\xff\xfe\n")),
    "an empty label table": Fault("the file is empty", harm=put("labels.csv", "")),
    "a table without the label column": Fault("did you mean 'subtype'", ["--config.data.target=subtpye"]),
    "a table without ids": Fault("data.patient", harm=put("labels.csv", "subtype\nLUAD\n")),
    "labels of other slides": Fault(
        "none of ", harm=lambda home, table: relabel(slide_id="x" + table["slide_id"])(home, table)
    ),
    "too little matched": Fault(
        "data.min_matched=0.99", ["--config.data.min_matched=0.99"], lambda home, table: feature_file(home).unlink()
    ),
    "an exclusion, strictly": Fault("with --strict", ["--strict"], lambda home, table: feature_file(home).unlink()),
    "one class only": Fault("a classification needs two", harm=relabel(subtype="LUAD")),
    "two labels of one slide": Fault(
        "different labels",
        harm=lambda home, table: pd.concat(
            [table, table.assign(subtype=table["subtype"].iloc[::-1].to_numpy())]
        ).to_csv(home / "labels.csv", index=False),
    ),
    "a filter that leaves nothing": Fault("data.filter leaves none", ["--config.data.filter=age > 900"]),
    "a patient in two parts": Fault("outside of it", ["--config.splits.test=official"], split_by_slides),
    "a class absent from training": Fault(
        "no training bag of class LUSC", ["--config.splits.file=folds.csv"], split_by_class
    ),
    "no split file": Fault("nofile.csv: no such file", ["--config.splits.file=nofile.csv"]),
    "a split of other slides": Fault(
        "are in the cohort", ["--config.splits.file=folds.csv"], put("folds.csv", "slide_id,fold_0\nx,train\ny,test\n")
    ),
    "a flipped bit": Fault("record 2 (slide ", harm=flip_a_bit, data=SHARDS),
    "a shard cut short": Fault(
        "cut short", harm=lambda home, table: os.truncate(shard(home), shard(home).stat().st_size - 40), data=SHARDS
    ),
    "an index older than its shard": Fault("the index is older than the shard", harm=other_shard, data=SHARDS),
    "a shard folder without index": Fault(
        "index.json is missing", harm=lambda home, table: (home / "shards" / "index.json").unlink(), data=SHARDS
    ),
}


@pytest.fixture(scope="module")
def cohort() -> Invented:
    return invent(10, width=8, sizes=(3, 8))


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder in which all is well: features, shards and labels."""
    home = tmp_path_factory.mktemp("whole")
    write_plain(cohort, home / "features")
    write_labels(cohort, home / "labels.csv")
    cache = home / "cache"
    arguments = [*SMALL, *(argument.replace("=features", f"={home}/features") for argument in USUAL)]
    arguments = [argument.replace("=labels.csv", f"={home}/labels.csv") for argument in arguments]
    assert train.main([*arguments, f"--config.data.cache={cache}", "--check"]) == 0
    next(cache.iterdir()).rename(home / "shards")
    cache.rmdir()
    return home


@pytest.fixture
def home(whole, tmp_path, monkeypatch) -> Path:
    """A copy of it that a test may harm, as the working folder."""
    shutil.copytree(whole, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setitem(sys.modules, "wandb", None)
    return tmp_path / "user"


def one_sentence(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_one_sentence_and_leaves_nothing_behind(name, home, cohort, capsys):
    fault = FAULTS[name]
    fault.harm(home, cohort.table)
    before = contents(home)
    arguments = [*SMALL, "--config.data.cache=../cache", "--config.run=../run", *fault.data, *fault.arguments]
    ended = run(train.main, arguments, capsys)
    assert ended.code == 2
    assert one_sentence(ended.err), ended.err
    assert fault.said in ended.err
    assert contents(home) == before
    assert not (home.parent / "run").exists()
    assert not list(home.parent.rglob("*.tmp")), "something half-written is left"


def config_with(line: str) -> str:
    """A config file with one line of the user's own, its fifth."""
    start = "from mil_jax.config import base_config\ndef get_config():\n    config = base_config()\n"
    return f"{start}    config.aggregator.name = 'abmil'\n    {line}\n    return config"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def get_config(:", "own.py, line 1: SyntaxError"),
        ("x = 1", "defines no get_config()"),
        ("def get_config():\n    return {}", "must return a ConfigDict"),
        (config_with("config.train.epoch = 3"), "train.epoch is not a setting; did you mean train.epochs?"),
        (config_with("config.train.epochs = '3'"), "own.py, line 5: TypeError"),
        (config_with("config.train.epochs = 3 / 0"), "own.py, line 5: ZeroDivisionError"),
        (config_with("config.demo.optimizer = {'rate': 3}"), "demo.optimizer.rate is not a setting"),
        (config_with("config.aggregator.name = 'abmill'"), "did you mean 'abmil'?"),
        (config_with("del config.aggregator.name"), "aggregator.name is not set"),
        (config_with("del config.train.epochs"), "train.epochs is missing; start from base_config()"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_named_with_what_is_wrong(content, said, home, capsys):
    (home / "own.py").write_text(content)
    ended = run(train.main, ["--config", "own.py"], capsys)
    assert (ended.code, one_sentence(ended.err)) == (2, True), ended.err
    assert said in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "--config is missing"), (["--config=configs/abmi.py"], "did you mean configs/abmil.py?")],
)
def test_a_config_that_is_not_there_is_an_error(arguments, said, capsys):
    ended = run(train.main, arguments, capsys)
    assert (ended.code, one_sentence(ended.err)) == (2, True), ended.err
    assert said in ended.err


def test_a_run_is_neither_replaced_nor_resumed_with_other_settings_or_data(home, cohort, capsys):
    arguments = [*SMALL, *USUAL, "--config.train.epochs=1", "--config.data.cache=../cache", "--config.run=../run"]
    assert run(train.main, arguments, capsys).code == 0
    before = contents(home.parent / "run")
    for more, said in (
        ([], "--resume"),
        (["--resume", "--config.optimizer.lr=0.5"], "optimizer.lr (was 0.0002, now 0.5)"),
        (["--resume", "--config.splits.seed=3"], "splits.seed (was 0, now 3)"),
    ):
        ended = run(train.main, [*arguments, *more], capsys)
        assert (ended.code, one_sentence(ended.err), said in ended.err) == (2, True, True), ended.err
    relabel(subtype=cohort.table["subtype"].iloc[::-1].to_numpy(), case_id=cohort.table["slide_id"])(home, cohort.table)
    ended = run(train.main, [*arguments, "--resume"], capsys)
    assert (ended.code, "labels" in ended.err, "changed since the run began" in ended.err) == (2, True, True)
    np.save(feature_file(home), np.ones((40, 8), np.float32))
    ended = run(train.main, [*arguments, "--resume"], capsys)
    assert (ended.code, "features" in ended.err) == (2, True)
    assert contents(home.parent / "run") == before


def test_a_folder_that_is_no_run_is_left_alone(home, capsys):
    (home / "thesis").mkdir()
    (home / "thesis" / "chapter.tex").write_text("years of work")
    before = contents(home)
    ended = run(
        train.main, [*SMALL, *USUAL, "--config.data.cache=../cache", "--config.run=thesis", "--overwrite"], capsys
    )
    assert (ended.code, one_sentence(ended.err), "no run folder" in ended.err) == (2, True, True)
    assert contents(home) == before


def test_a_full_disk_while_saving_keeps_what_was_saved_before(home, capsys, monkeypatch):
    arguments = [*SMALL, *USUAL, "--config.data.cache=../cache", "--config.run=../run"]
    arguments.append("--config.train.checkpoint_seconds=0")
    usage = shutil.disk_usage(home)
    answers = [usage, usage._replace(free=1000)]  # there is room for the first checkpoint only
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.shutil, "disk_usage", lambda _: answers.pop(0))
        ended = run(train.main, arguments, capsys)
    assert (ended.code, one_sentence(ended.err), "the disk is full" in ended.err) == (2, True, True), ended.err
    ended = run(train.main, [*arguments, "--resume"], capsys)
    assert (ended.code, "Resumed in epoch 2 of 2" in ended.out) == (0, True)


@pytest.mark.parametrize("name", ["a table without the label column", "a flipped bit"])
def test_the_process_ends_with_code_2_and_one_line_on_stderr(name, home, cohort):
    fault = FAULTS[name]
    fault.harm(home, cohort.table)
    command = [sys.executable, "-m", "mil_jax.train", *SMALL, *fault.data, *fault.arguments]
    command += ["--config.data.cache=../cache", "--config.run=../run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert one_sentence(ended.stderr)
    assert fault.said in ended.stderr
    assert not (home.parent / "run").exists()
