"""Errors that the user can fix. An entry point prints one as a single sentence and exits with 2."""

import re
from pathlib import Path

_LONGEST_WORD, _LONGEST = 300, 1_500  # characters


class UserError(Exception):
    """What is wrong, where (file, slide id, key, row), and what to do, in one sentence: on one line, with very long values cut."""

    def __init__(self, sentence: str) -> None:
        line = " ".join(sentence.split("\n"))
        line = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda long: f"{long[0][:_LONGEST_WORD]}...", line)
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} ... {line[-300:]}")


class ConfigError(UserError):
    """A setting that does not exist, has the wrong type, or cannot work with another."""


class DataError(UserError):
    """A table, feature file or split that cannot be used as it is."""


class ShardError(DataError):
    """A shard, record or index that is torn, altered or does not belong together."""


class TrainingError(UserError):
    """A training that cannot go on."""


class RunFolderError(UserError):
    """A run folder that exists, is incomplete, or belongs to another run."""


class BeingWritten(UserError):
    """What another process is writing now. lock: the file that it has locked meanwhile."""

    def __init__(self, sentence: str, lock: Path) -> None:
        super().__init__(sentence)
        self.lock = lock


class RenamedSetting(FutureWarning):
    """A setting was given by a name that it had in an earlier version."""
