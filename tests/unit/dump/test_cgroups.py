"""How much memory control groups leave, read from trees of files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor import procfs
from torpor.dump import cgroups

MIB = 1 << 20
ENDLESS = "max"
MEMINFO = b"MemTotal: 99999999 kB\nMemAvailable: 66666666 kB\nSwapFree: 0 kB\nAnonPages: 77777777 kB\n"


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the unified hierarchy is mounted; process 7 is in its group a/b, processes 8 and 9 in a/c."""
    mounts = f"1 0 0:1 / {tmp_path} rw - cgroup2 cgroup2 rw\n".encode()
    told = {"/proc/self/mountinfo": mounts, "/proc/meminfo": MEMINFO, "/proc/7/cgroup": b"0::/a/b\n"}
    told |= dict.fromkeys(("/proc/8/cgroup", "/proc/9/cgroup"), b"0::/a/c\n") | {"/proc/6/cgroup": b"0::/../x\n"}
    real = procfs.read
    monkeypatch.setattr(procfs, "read", lambda path: told[path] if path in told else real(path))
    for name in ("a", "a/b", "a/c"):
        group(tmp_path / name)
    return tmp_path


def group(
    folder: Path,
    *,
    most: int | str = ENDLESS,
    high: int | str = ENDLESS,
    used: int = 0,
    files: int = 0,
    anon: int = 9999,
) -> None:
    """Make a group, all in MiB."""
    folder.mkdir(exist_ok=True)
    for name, value in (("memory.max", most), ("memory.high", high), ("memory.current", used)):
        (folder / name).write_text(f"{value if isinstance(value, str) else value * MIB}\n")
    stat = f"anon {anon * MIB}\nfile 1\ninactive_file {files * MIB}\nactive_file 0\n"
    (folder / "memory.stat").write_text(stat)


def test_without_limits_there_is_room(top: Path) -> None:
    assert not cgroups.shortage({7: 1000 * MIB})


@pytest.mark.parametrize("limit", ["most", "high"])
@pytest.mark.parametrize("where", ["a", "a/b"])
def test_a_limit_of_any_group_above_counts(top: Path, where: str, limit: str) -> None:
    group(top / where, used=600, **{limit: 1000})
    assert not cgroups.shortage({7: 300 * MIB})
    assert (
        cgroups.shortage({7: 390 * MIB}) == f"the memory cgroup {where} has 400.0 MiB left, copies may take 390.0 MiB"
    )


def test_what_is_there_of_files_can_be_taken_back(top: Path) -> None:
    group(top / "a/b", most=1000, used=900, files=800)
    assert not cgroups.shortage({7: 800 * MIB})


def test_processes_of_one_group_add_up_but_not_to_more_than_it_has(top: Path) -> None:
    group(top / "a/c", most=1000, used=600)
    assert not cgroups.shortage({8: 200 * MIB})
    assert cgroups.shortage({8: 200 * MIB, 9: 200 * MIB})
    group(top / "a/c", most=1000, used=600, anon=250)
    assert not cgroups.shortage({8: 200 * MIB, 9: 200 * MIB})


def test_the_host_is_the_last_of_the_groups(top: Path) -> None:
    assert cgroups.shortage({7: 70_000_000 << 10}).startswith("the host's memory has 63.6 GiB left")


def test_a_group_that_is_not_seen_or_a_process_that_ended_is_no_shortage(top: Path) -> None:
    assert not cgroups.shortage({6: 100 * MIB, 2**22 + 1: 100 * MIB})
