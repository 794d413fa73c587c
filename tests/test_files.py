"""Files and folders appear whole, whoever is killed when, and of two processes one ends with the result and one with a sentence."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from mil_jax import file_locks, files
from mil_jax.errors import BeingWritten, UserError


@pytest.fixture(autouse=True)
def a_fresh_process(monkeypatch):
    monkeypatch.setattr(files, "_tidied", set())


@pytest.fixture(params=["exchange", "two renames"])
def file_system(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def in_child(action) -> int:
    """Runs it in a process of its own; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except UserError:
            os._exit(7)
        except SystemExit as error:
            os._exit(int(error.code))
        os._exit(0)
    return os.waitpid(child, 0)[1]


def write_folder(target: Path, content: str, overwrite: bool = True) -> None:
    with files.atomic_folder(target, "mark", overwrite) as folder:
        (folder / "mark").write_text(content)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(name: str, monkeypatch, kill=kill):
    """Has a process killed right after a step."""
    before = getattr(Path, name) if hasattr(Path, name) else getattr(files, name)
    owner = Path if hasattr(Path, name) else files

    def step(*arguments, **more):
        result = before(*arguments, **more)
        kill()
        return result

    monkeypatch.setattr(owner, name, step)


def test_a_replaced_folder_is_whole_at_every_instant(tmp_path, monkeypatch, file_system):
    target = tmp_path / "made"
    for step in ("mkdir", "replace", "_exchange", "_check_target"):
        write_folder(target, "before")
        with monkeypatch.context() as patch:
            killed_after(step, patch)
            status = in_child(lambda: write_folder(target, "after"))
        assert os.WTERMSIG(status) == signal.SIGKILL or (step, file_system) == ("replace", "exchange")
        files.restore(target)
        assert (target / "mark").read_text() in ("before", "after"), step
        files._tidied.clear()
        write_folder(target, "again")
        assert [path.name for path in tmp_path.iterdir()] == ["made"], step
        assert (target / "mark").read_text() == "again"


def test_a_signal_between_the_renames_puts_the_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    write_folder(tmp_path / "made", "before")

    def act():
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
        write_folder(tmp_path / "made", "after")

    with monkeypatch.context() as patch:
        before = Path.replace

        def replace(self, target):
            result = before(self, target)
            if self == tmp_path / "made":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            return result

        patch.setattr(Path, "replace", replace)
        assert os.waitstatus_to_exitcode(in_child(act)) in (0, 143)
    files.restore(tmp_path / "made")
    assert (tmp_path / "made" / "mark").read_text() in ("before", "after")
    files._tidied.clear()
    write_folder(tmp_path / "made", "again")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path):
    def die():
        with files.atomic_folder(tmp_path / "made", "mark", False), files.atomic_write(tmp_path / "a.csv") as temporary:
            temporary.write_text("half")
            kill()

    in_child(die)
    kept = (".hidden", ".c.tmp", "d.0.tmp", ".e.0123.old.txt", ".b.csv.4711.tmp", ".photos.2023.old", ".x.lock")
    for name in kept:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 3 + len(kept)
    files.write_text(tmp_path / "b.csv", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"b.csv", *kept}


def test_what_a_running_writer_writes_stays(tmp_path):
    with (
        files.atomic_write(tmp_path / "a.csv") as temporary,
        files.atomic_folder(tmp_path / "m", "mark", False) as folder,
    ):
        temporary.write_text("half")
        (folder / "mark").touch()

        def another():
            files._tidied.clear()
            files.write_text(tmp_path / "b.csv", "whole")

        assert in_child(another) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.csv", "m"}


def test_of_two_writers_of_a_folder_the_later_is_refused_and_can_wait(tmp_path):
    target = tmp_path / "made"
    with files.atomic_folder(target, "mark", False) as folder:
        (folder / "mark").write_text("first")
        with (
            pytest.raises(BeingWritten, match=r"made: is being written by another process"),
            files.atomic_folder(target, "mark", False),
        ):
            pass
        assert folder.is_dir()
    files.wait_for(BeingWritten("", files._lock_of(target)))  # at once: it has ended
    assert (target / "mark").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_waiting_ends_with_the_other_process(tmp_path):
    reading, writing = os.pipe()

    def other():
        with files.atomic_folder(tmp_path / "made", "mark", False):
            os.write(writing, b"made")
            time.sleep(0.2)
            kill()

    child = os.fork()
    if child == 0:
        other()
    os.read(reading, 4)
    started = time.monotonic()
    files.wait_for(BeingWritten("", files._lock_of(tmp_path / "made")))
    assert time.monotonic() - started > 0.05
    os.waitpid(child, 0)
    write_folder(tmp_path / "made", "mine", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_has_one_owner_until_it_ends(tmp_path):
    assert files.own(tmp_path)
    assert files.own(tmp_path)  # again, by the same process

    def another():
        files._owned.clear()  # what a process that was not forked knows
        os._exit(0 if files.own(tmp_path) else 7)

    assert os.waitstatus_to_exitcode(in_child(another)) == 7
    files.disown(tmp_path)
    assert os.waitstatus_to_exitcode(in_child(another)) == 0
    assert files.own(tmp_path)
    files.disown(tmp_path)


def test_a_file_system_without_locks_writes_all_the_same_and_removes_nothing(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(file_locks.fcntl, "flock", unsupported)
    (tmp_path / ".a.csv.0123456789abcdef-01234567.tmp").touch()
    files.write_text(tmp_path / "a.csv", "whole")
    write_folder(tmp_path / "made", "whole")
    write_folder(tmp_path / "made", "again")
    assert files.own(tmp_path)
    files.disown(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.csv",
        "made",
        ".a.csv.0123456789abcdef-01234567.tmp",
    }


def test_new_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.csv", "")
        write_folder(tmp_path / "made", "")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a.csv", tmp_path / "made")}
    assert modes == {"a.csv": 0o640, "made": 0o750}


@pytest.mark.parametrize("name", ["x" * 220, "ü" * 110])
def test_long_names_are_written(tmp_path, name):
    files.write_text(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"


def test_two_writers_meet_at_the_place_of_a_link_which_stays(tmp_path):
    """Results on another disk, with a link to them: the link is the user's."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "made")
    write_folder(tmp_path / "link", "first")
    write_folder(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["made"]
    assert (tmp_path / "disk" / "made" / "mark").read_text() == "second"
    with (
        files.atomic_folder(tmp_path / "disk" / "made", "mark", True),
        pytest.raises(BeingWritten),
        files.atomic_folder(tmp_path / "link", "mark", True),
    ):
        pass


def test_of_many_that_begin_at_once_one_writes(tmp_path):
    """Whatever their clocks say."""
    for attempt in range(2):
        start, children = time.monotonic() + 0.02, []
        for number in range(3):

            def write(number=number, attempt=attempt, start=start):
                skew = number * 10**9
                now = time.time_ns
                time.time_ns = lambda: now() - skew
                while time.monotonic() < start:
                    pass
                with files.atomic_folder(tmp_path / str(attempt), "mark", False) as folder:
                    time.sleep(0.7)  # longer than others wait
                    (folder / "mark").touch()

            child = os.fork()
            if child == 0:
                os._exit(os.waitstatus_to_exitcode(in_child(write)))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 7, 7]


def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(UserError, match=r"a: cannot be created .Permission denied.; choose another folder"):
        files.write_text(tmp_path / "a" / "below", "")
    monkeypatch.undo()
    with (
        pytest.raises(UserError, match=r"made: cannot be written .Permission denied.; choose another folder"),
        files.atomic_folder(tmp_path / "made", "mark", True) as folder,
    ):
        raise PermissionError(13, "Permission denied", str(folder / "mark"))
    with pytest.raises(UserError, match=r"^/proc.* cannot be (written|created)"):  # where no folder can be made
        write_folder(Path("/proc/made"), "")
    with pytest.raises(PermissionError), files.atomic_folder(tmp_path / "made", "mark", True):
        raise PermissionError(13, "Permission denied", "/elsewhere/features.h5")  # not what is written
