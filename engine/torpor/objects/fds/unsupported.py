"""Open file descriptions that cannot be kept: what each one is, why it cannot be kept, and what to do.

This kind is the last in the registry and matches whatever no other kind matches, so that nothing is skipped.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator

from torpor.image.image_pb2 import Description
from torpor.objects.kind import (
    Describing,
    Family,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.sockets.common import family_of

CLOSE = "close it before the checkpoint"

IO_URING = "anon_inode:[io_uring]"
NO_IO_URING = (
    "run the program without io_uring: for uvloop before 0.22 and Node, set UV_USE_IO_URING=0 in the environment"
)
ANONYMOUS = {
    IO_URING: Unsupported("the state of an io_uring cannot be read", NO_IO_URING),
    "anon_inode:[userfaultfd]": Unsupported("what a userfaultfd watches cannot be read", CLOSE),
    "anon_inode:[perf_event]": Unsupported("the processor's performance counters cannot be kept", "stop the profiler"),
    "anon_inode:[fanotify]": Unsupported("what fanotify watches cannot be kept", CLOSE),
    "anon_inode:seccomp notify": Unsupported(
        "a seccomp listener cannot be kept", "run it without the supervisor that listens"
    ),
}
"""By the text of the link in /proc/PID/fd, as of Linux 6.18."""

DEVICES = {
    (10, 200): Unsupported("a network tunnel belongs to this host", CLOSE),
    (10, 229): Unsupported("a FUSE file system is served by this process", "unmount it"),
    (10, 232): Unsupported("a virtual machine (KVM) cannot be kept", CLOSE),
    (195, -1): Unsupported("the state of an NVIDIA GPU cannot be read", "run it without the GPU, or free the GPU"),
    (226, -1): Unsupported("the state of a GPU cannot be read", "run it without the GPU, or free the GPU"),
}
"""By major and minor number; -1: any minor (Documentation/admin-guide/devices.txt)."""

_FABRIC = re.compile("/dev/(infiniband/|hfi1|cxi|kgni)")
"""InfiniBand, RoCE and EFA; Omni-Path; Slingshot; Aries (drivers/infiniband of Linux 6.18, and vendors' own)."""
_OWN_ADAPTER = Unsupported(
    "what the adapter of a fast network holds (InfiniBand, Omni-Path, Slingshot, EFA) cannot be read",
    "have MPI use shared memory and TCP: `torpor sbatch --mpi=tcp`, or the variables in docs/slurm.md",
)


NETLINK = {9: "audit", 12: "netfilter", 16: "generic"}
"""Netlink's more common protocols (include/uapi/linux/netlink.h)."""
# Python has these only if the headers that it was built with have them.
_PACKET, _CAN, _TIPC, _BLUETOOTH, _ALG, _VSOCK, _XDP = 17, 29, 30, 31, 38, 40, 44  # include/linux/socket.h
_SCTP, _UDPLITE = 132, 136  # include/uapi/linux/in.h
FAMILIES = {
    _PACKET: "a packet socket, which reads from this host's network devices,",
    _ALG: "a socket of the kernel's cryptography (AF_ALG)",
    _CAN: "a CAN bus socket",
    _BLUETOOTH: "a Bluetooth socket",
    _TIPC: "a TIPC socket",
    _VSOCK: "a connection between this virtual machine and its host (AF_VSOCK)",
    _XDP: "an AF_XDP socket, which owns a queue of a network device,",
}
PROTOCOLS = {
    socket.IPPROTO_ICMP: "a ping socket",
    socket.IPPROTO_ICMPV6: "a ping socket",
    _SCTP: "an SCTP socket",
    _UDPLITE: "a UDP-Lite socket",
}
"""By protocol, of IPv4 and IPv6 sockets."""


_NAMESPACE = re.compile(r"(\w+):\[\d+\]$")
"""The link to a namespace (namespaces(7)). Pipes and sockets look alike, and have a kind of their own."""


class UnsupportedKind(Kind[Family | None]):
    """An open file description that no other kind matches."""

    field = ""

    def matches(self, seen: Seen) -> bool:
        """Always: whatever reaches this kind is unsupported."""
        return True

    def grab(self, open_file: OpenFile[Family | None], pidfd: int, *, content: bool) -> Family | None:
        """The address family, type and protocol of a socket."""
        if not stat.S_ISSOCK(open_file.stat.st_mode):
            return None
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return family_of(copy)

    def unsupported(self, open_file: OpenFile[Family | None], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Always one reason: this kind is never kept."""
        yield _why(open_file)

    def describe(
        self, open_file: OpenFile[Family | None], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Never called: the checkpoint was refused before."""
        raise AssertionError(f"{open_file.link} is not kept")


def _why(open_file: OpenFile[Family | None]) -> Unsupported:
    mode = open_file.stat.st_mode
    if not open_file.link:
        return Unsupported("its path is longer than the 4096 bytes that the kernel shows", "move it to a shorter path")
    if _FABRIC.match(open_file.link):
        return _OWN_ADAPTER
    if stat.S_ISBLK(mode):
        return Unsupported("a block device is open", CLOSE)
    if stat.S_ISCHR(mode):
        major, minor = os.major(open_file.stat.st_rdev), os.minor(open_file.stat.st_rdev)
        other = Unsupported(f"the state of the device {major}:{minor} is not known", CLOSE)
        return DEVICES.get((major, minor)) or DEVICES.get((major, -1)) or other
    if open_file.link.startswith("anon_inode:bpf") or open_file.link.startswith("anon_inode:[bpf"):
        return Unsupported("BPF programs and maps live in this kernel", CLOSE)
    if open_file.state is not None:
        return Unsupported(
            f"{_socket(open_file.state)} cannot be kept: what it sends and receives belongs to this host", CLOSE
        )
    if namespace := _NAMESPACE.match(open_file.link):
        return Unsupported(f"it refers to a {namespace[1]} namespace of this host", CLOSE)
    if open_file.link == IO_URING and _is_idle(open_file.fields):
        return Unsupported(
            f"{ANONYMOUS[IO_URING].why}, even when it is idle: all requests have completed and their results were read",
            NO_IO_URING,
        )
    return ANONYMOUS.get(open_file.link, Unsupported("its kind is unknown", CLOSE))


def _socket(family: Family) -> str:
    """Describe a socket."""
    if family.family == socket.AF_NETLINK:
        return f"a netlink socket ({NETLINK.get(family.protocol, f'protocol {family.protocol}')})"
    if family.family in (socket.AF_INET, socket.AF_INET6):
        if family.type == socket.SOCK_RAW:
            return f"a raw socket of IP protocol {family.protocol}"
        return PROTOCOLS.get(family.protocol, f"a socket of IP protocol {family.protocol}")
    return FAMILIES.get(family.family, f"a socket of address family {family.family}")


def _is_idle(fields: dict[str, str]) -> bool:
    """Whether all requests of an io_uring have completed and their results were read (io_uring/fdinfo.c, Linux 6.1)."""
    pairs = (("SqHead", "SqTail"), ("CqHead", "CqTail"), ("CachedSqHead", "CachedCqTail"))
    return all(one in fields and fields[one] == fields.get(other) for one, other in pairs)
