"""What this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """What there is: bytes of a host and of one device; the least of all processes.

    own: whether a device has memory of its own; those of a CPU use the host's, all of them the same arrays. devices: of all processes.
    """

    host: int
    device: int
    own: bool
    devices: int

    @property
    def of_an_array(self) -> tuple[int, str]:
        """Bytes that one array, whole on every device, has to share, and whose they are."""
        return (self.device, "device") if self.own else (self.host, "host")


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or what its container or batch job is limited to."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def group_limits(membership: Path, root: Path) -> Iterator[int]:
    """The memory limits, in bytes, of the Linux control groups that `membership` lists and of those around them, below `root`."""
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / name).is_file():
                limit = (folder / name).read_text(encoding="utf-8").strip()
                if limit.isdecimal():  # "max" is none
                    yield int(limit)
            if folder == top:
                break
