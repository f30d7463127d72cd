"""How much memory is left before the kernel's OOM killer comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available() -> float:
    """The share of memory that is left (0 to 1): the least of the host's and of each cgroup's of this process.

    A cgroup's limit is memory.max. Its inactive file pages do not count as used, since the kernel reclaims them when
    memory is needed (cgroup-v2.rst). Limits of cgroups of version 1 are not read.
    """
    return min(_shares(), default=1.0)


def _shares() -> Iterator[float]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    numbers = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    yield numbers["MemAvailable"] / numbers["MemTotal"]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            folder = CGROUPS / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place == CGROUPS or CGROUPS not in place.parents:
                    break
                with suppress(OSError, ValueError):  # without a limit (``max``), or out of sight in a container
                    yield _share(place)


def _share(cgroup: Path) -> float:
    limit = int((cgroup / "memory.max").read_text())
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    used = int((cgroup / "memory.current").read_text()) - int(stat["inactive_file"])
    return max(limit - used, 0) / limit
