"""Other hosts for a Dask cluster: network namespaces, each with a cable to the one of the program that makes them.

A node falls silent when each side's neighbour table has a false address for the other: packets go out and arrive
nowhere, and no one is told. Programs that make nodes run in a network of their own, as root or not (`alone`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import end
from tests.integration.dask_cluster import until
from tests.users import BIN

NOBODY = "02:00:00:00:00:99"
NO_VETH = 77
"""Exit code: the kernel has no veth."""


@contextmanager
def woken(tmp: Path, snapshot: str, *within: str) -> Iterator[subprocess.Popen[bytes]]:
    """Wake a process of the store `images` on what looks like another node: PIDs and a host name of its own.

    All of it is gone afterwards.
    """
    rights = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    node = ["unshare", *rights, "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    restore: list[str | Path] = [BIN / "torpor", "restore", snapshot, "--store", tmp / "images"]
    with open(tmp / "output", "ab") as output:
        process = subprocess.Popen([*within, *node, *restore], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        end(process)


def ip(*words: str, node: tuple[str, ...] = ()) -> None:
    subprocess.run([*node, "ip", *words], check=True)


@dataclass
class Node:
    """Another host: a network namespace, with a cable to this one."""

    number: int
    within: tuple[str, ...]
    """The command that leads there."""

    @property
    def here(self) -> str:
        """This side's address on the cable."""
        return f"10.77.{self.number}.1"

    @property
    def address(self) -> str:
        return f"10.77.{self.number}.2"

    def fall_silent(self) -> None:
        for side, address, where in (("here", self.address, ()), ("there", self.here, self.within)):
            entry = (address, "lladdr", NOBODY, "nud", "permanent", "dev", f"{side}{self.number}")
            ip("neighbour", "replace", *entry, node=where)


@contextmanager
def connected(number: int) -> Iterator[Node]:
    """Make a node. Exits with NO_VETH where that is not to be had."""
    holder = subprocess.Popen(["unshare", "--net", "--kill-child", "--fork", "sleep", "infinity"])
    try:
        own = os.readlink("/proc/self/ns/net")
        until("the node", lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own)
        node = Node(number, ("nsenter", "--target", str(holder.pid), "--net"))
        here, there = f"here{number}", f"there{number}"
        made = subprocess.run(
            ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(holder.pid)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            print(made.stderr, file=sys.stderr)
            sys.exit(NO_VETH)
        for device, address, where in ((here, node.here, ()), (there, node.address, node.within)):
            ip("address", "add", f"{address}/24", "dev", device, node=where)
            for name in (device, "lo"):
                ip("link", "set", name, "up", node=where)
        ip("route", "add", "default", "via", node.here, node=node.within)
        yield node
    finally:
        end(holder)


def alone(program: str, tmp: Path) -> dict[str, Any]:
    """Run a module of these tests in a network of its own; what it prints last, as JSON."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    network = ["unshare", *rights, "--net"]
    if not shutil.which("ip") or subprocess.run([*network, "true"], check=False).returncode:
        pytest.skip("needs iproute2 and network namespaces")
    command: list[str | Path] = [*network, sys.executable, "-m", f"tests.integration.{program}", tmp]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == NO_VETH:
        pytest.skip(f"no second network here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
