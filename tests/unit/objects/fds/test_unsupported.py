"""What no kind keeps: named, with what to do."""

from __future__ import annotations

import os
import socket
import stat
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, holder
from torpor.objects.fds import descriptors, unsupported
from torpor.objects.fds.unsupported import IO_URING, UnsupportedKind
from torpor.objects.kind import Family


def why(link: str = "", mode: int = stat.S_IFREG, device: int = 0, state: Any = None, fields: Any = None) -> str:
    open_file: Any = SimpleNamespace(
        link=link, stat=SimpleNamespace(st_mode=mode, st_rdev=device), state=state, fields=fields or {}
    )
    return unsupported._why(open_file).why


def test_it_is_the_last_of_all_kinds() -> None:
    """It matches whatever reaches it, so nothing behind it would ever be asked, and nothing is skipped."""
    assert isinstance(descriptors.KINDS[-1], UnsupportedKind)
    assert [kind for kind in descriptors.KINDS if isinstance(kind, UnsupportedKind)] == [descriptors.KINDS[-1]]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("longer than the 4096 bytes", why()),
        ("a block device is open", why("/dev/sda", stat.S_IFBLK)),
        ("GPU", why("/dev/nvidia0", stat.S_IFCHR, os.makedev(195, 0))),
        ("GPU", why("/dev/dri/card7", stat.S_IFCHR, os.makedev(226, 7))),
        ("FUSE", why("/dev/fuse", stat.S_IFCHR, os.makedev(10, 229))),
        ("the device 10:1 is not known", why("/dev/psaux", stat.S_IFCHR, os.makedev(10, 1))),
        ("BPF", why("anon_inode:bpf-map")),
        ("BPF", why("anon_inode:[bpf_link]")),
        ("refers to a net namespace", why("net:[4026531840]")),
        ("refers to a pid_for_children namespace", why("pid_for_children:[1]")),
        ("its kind is unknown", why("anon_inode:[new]")),
        ("its kind is unknown", why("/a/file:[12] of mine")),
        ("io_uring cannot be read", why("anon_inode:[io_uring]")),
    ],
)
def test_what_it_is_is_said(words: str, found: str) -> None:
    assert words in found


def test_an_idle_io_uring_is_refused_too() -> None:
    """Its rings are memory that the kernel shares with the program: they cannot be made again at their place."""
    heads = {"SqHead": "1", "SqTail": "1", "CqHead": "2", "CqTail": "2", "CachedSqHead": "3", "CachedCqTail": "3"}
    assert "even when it is idle" in why(IO_URING, fields=heads)
    for name in heads:
        assert "even when it is idle" not in why(IO_URING, fields=heads | {name: "9"})
        left = {one: value for one, value in heads.items() if one != name}
        assert "even when it is idle" not in why(IO_URING, fields=left)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Family(socket.AF_NETLINK, socket.SOCK_RAW, 9), "a netlink socket (audit)"),
        (Family(socket.AF_NETLINK, socket.SOCK_RAW, 21), "a netlink socket (protocol 21)"),
        (Family(socket.AF_INET, socket.SOCK_RAW, 1), "a raw socket of IP protocol 1"),
        (Family(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6), "a ping socket"),
        (Family(socket.AF_INET, socket.SOCK_STREAM, 132), "an SCTP socket"),
        (Family(socket.AF_INET, socket.SOCK_DGRAM, 99), "a socket of IP protocol 99"),
        (Family(17, socket.SOCK_RAW, 0), "a packet socket"),
        (Family(99, socket.SOCK_RAW, 0), "a socket of address family 99"),
    ],
)
def test_sockets_by_their_family(family: Family, words: str) -> None:
    assert why("socket:[7]", stat.S_IFSOCK, state=family).startswith(words)


def test_a_real_one_is_refused_with_its_number(acting: Acting) -> None:
    def body(_: object) -> None:
        with holder("n = os.open('/proc/self/ns/net', os.O_RDONLY); ready(n=n); wait()") as tree:
            number = tree.ready()["n"]
            (reason,) = tree.survey()
            assert f", fd {number} " in reason.subject
            assert "it refers to a net namespace of this host" in reason.why

    acting(body)
