"""How much memory is left: the tightest limit counts, and page cache that can be dropped counts as free."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor_jupyter.server import memory_pressure


class Host:
    """Files of a host in a directory: /proc/meminfo, /proc/self/cgroup and the cgroups."""

    def __init__(self, folder: Path) -> None:
        self.cgroups = folder / "cgroup"
        self.texts = {"/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 800 kB\n", "/proc/self/cgroup": "0::/a/b\n"}

    def group(self, path: str, limit: str, current: int, inactive_file: int = 0) -> None:
        """Make a cgroup with a limit."""
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    read = Path.read_text

    def read_text(path: Path) -> str:
        return made.texts.get(str(path)) or read(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(memory_pressure, "CGROUPS", made.cgroups)
    return made


def test_without_limits_the_host_counts(host: Host) -> None:
    assert memory_pressure.available() == 0.8
    host.group("a/b", "max", 999)
    assert memory_pressure.available() == 0.8


@pytest.mark.parametrize("path", ["a", "a/b"])
def test_a_limit_of_any_cgroup_above_counts(host: Host, path: str) -> None:
    host.group("a", "max", 900)
    host.group("a/b", "max", 900)
    host.group(path, "1000", 900)
    assert memory_pressure.available() == pytest.approx(0.1)


def test_page_cache_that_is_not_in_use_counts_as_free(host: Host) -> None:
    host.group("a/b", "1000", 900, inactive_file=600)
    assert memory_pressure.available() == pytest.approx(0.7)


def test_more_than_the_limit_is_nothing_left(host: Host) -> None:
    """The limit may have been lowered below what is in use."""
    host.group("a/b", "1000", 1200)
    assert memory_pressure.available() == 0


def test_a_host_with_cgroups_of_version_1_only(host: Host) -> None:
    host.texts["/proc/self/cgroup"] = "4:memory:/a/b\n"
    host.group("a/b", "1000", 900)
    assert memory_pressure.available() == 0.8


@pytest.mark.parametrize("path", ["/", "/../../elsewhere"])
def test_a_cgroup_outside_of_the_namespace(host: Host, path: str) -> None:
    """cgroup_namespaces(7): it is shown with ``..``; the root cgroup has no limit."""
    host.texts["/proc/self/cgroup"] = f"0::{path}\n"
    assert memory_pressure.available() == 0.8
