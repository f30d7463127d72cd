"""A child with a network and directories of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from torpor import procfs
from torpor.dump.own_namespaces import OwnNamespaces
from torpor.probe import probe
from torpor.remote.children import forked

pytestmark = pytest.mark.skipif(
    not (procfs.is_root() or probe().user_namespaces), reason="this user may not have namespaces"
)


def in_child(work: Callable[[], object]) -> None:
    pid = forked(work)
    assert os.waitpid(pid, 0)[1] == 0


def rights() -> int:
    return int(procfs.status(procfs.read("/proc/thread-self/status"))[b"CapEff"], 16)


def test_the_network_is_another_with_this_hosts_ports() -> None:
    names = ("ip_local_port_range", "ip_unprivileged_port_start")
    settings = [Path(f"/proc/sys/net/ipv4/{name}") for name in names]
    before, namespace = [one.read_text() for one in settings], os.stat("/proc/self/ns/net").st_ino

    def look() -> None:
        here = OwnNamespaces()
        assert os.stat("/proc/self/ns/net").st_ino != namespace
        assert [name for _, name in socket.if_nameindex() if name != "lo"] == []
        assert [one.read_text() for one in settings] == before
        assert here.add(ip_address("203.0.113.7"))
        assert here.add(ip_address("127.0.0.1"))
        assert here.add(IPv6Address("2001:db8::7")) == here.add(IPv6Address("::1"))
        with socket.create_server(("203.0.113.7", 0)) as server:
            socket.create_connection(server.getsockname()).close()

    in_child(look)


def test_a_users_rights_are_given_up() -> None:
    before = rights()

    def look() -> None:
        here = OwnNamespaces()
        here.give_up()
        assert rights() == before

    in_child(look)


def test_directories_and_links_are_there_and_empty(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to("full")
    names = [os.fsencode(tmp_path / one) for one in ("full", "link/.", "link/nothing", "link/../full")]

    def look() -> None:
        OwnNamespaces().enter_empty([b"/", b"/dev", *names])
        assert os.listdir(tmp_path / "full") == []
        assert os.readlink(tmp_path / "link") == str(tmp_path / "full")
        (tmp_path / "link" / "new").touch()
        os.rename(tmp_path / "full" / "new", tmp_path / "moved")
        assert os.stat("/dev").st_dev != os.stat("/").st_dev or before[0] == before[1]
        assert os.path.exists("/proc/self/status")
        assert not os.path.exists(__file__)

    before = os.stat("/dev").st_dev, os.stat("/").st_dev
    in_child(look)
    assert sorted(os.listdir(tmp_path)) == ["full", "link"]
