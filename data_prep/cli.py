"""What the commands of data preparation share: reading their flags, `--help`, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mil_jax.cli.console import console, say
from mil_jax.errors import ConfigError

SECONDS_BETWEEN_LINES = 30.0  # where no bar can be shown


def parsed(
    name: str, arguments: list[str], define: Callable[[flags.FlagValues], None], about: str, needed: Sequence[str] = ()
) -> flags.FlagValues | None:
    """The flags of a command; None where it was asked for help, which is then shown.

    Raises ConfigError for an unknown or mistyped flag, a stray argument, and where a needed one is missing.
    """
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)
    try:
        unparsed = values([name, *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the settings") from error
    if values.help:
        say(about + "\n\n" + values.get_help())
        return None
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}; settings are given as --name=value")
    for flag in needed:
        if not values[flag].value:
            raise ConfigError(f"--{flag} is missing; --help shows an example")
    return values


@contextmanager
def progress(noun: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with the name of each thing done: a bar with rate and time left, or a line every half minute."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun = said = time.monotonic()
    done = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(noun, total=total, rate="")

        def advance(name: str) -> None:
            nonlocal done, said
            done += 1
            now = time.monotonic()
            rate = done / max(now - begun, 1e-9)
            bar.update(task, completed=done, description=name, rate=f"{rate:.2g} {noun}/s")
            if not console.is_terminal and now - said > SECONDS_BETWEEN_LINES:
                said = now
                say(f"{done} of {total} {noun}, {rate:.2g} {noun}/s, {(total - done) / rate / 60:.1f} minutes left")

        yield advance
