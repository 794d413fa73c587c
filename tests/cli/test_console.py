"""How a command ends: its exit code, and one sentence where the user can do something."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mil_jax.cli.progress import StopOnSignal
from tests.commands import run


@pytest.fixture(autouse=True)
def signals():
    """As they were before."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=["TERM", "HUP", "INT"]
)
@pytest.mark.parametrize("place", ["anywhere", "in a destructor"])
def test_a_signal_ends_a_command_even_where_python_ignores_exceptions(capsys, number, code, place):
    class Dying:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0)

    def main(arguments):
        if place == "anywhere":
            os.kill(os.getpid(), number)
        else:
            Dying()
        time.sleep(5)
        return 0

    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert run(main, [], capsys).code == code


def test_what_nohup_ignores_stays_ignored(capsys):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def main(arguments):
        with StopOnSignal() as listener:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not listener.stop_requested()
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    assert run(main, [], capsys).code == 0


@pytest.mark.parametrize("number", [1, 13, 30], ids=["EPERM", "EACCES", "EROFS"])
def test_a_place_that_may_not_be_used_is_a_sentence(capsys, number):
    def main(arguments):
        raise OSError(number, os.strerror(number), "/data/x")

    ended = run(main, [], capsys)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "/data/x: cannot be used" in ended.err
