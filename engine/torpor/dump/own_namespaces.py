"""A network and a directory tree of this process's own, for what is only tried (`torpor.dump.socket_trial`).

The network has no device but the loopback, which gets the addresses that are needed. The root directory has no files
but /proc, and those directories that are asked for, empty, each on a file system of its own where it really is.

Documented in: namespaces(7), rtnetlink(7), ip-sysctl.rst of the kernel.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.remote.sys import syscall
from torpor.trials import enter_user_namespace

Host = IPv4Address | IPv6Address
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_NO_DEVICE = b"none\0"
_STAGE = b"/tmp"
"""Where the new root directory is mounted, in this process's mount namespace only."""
_SETTINGS = ("ipv4/ip_unprivileged_port_start", "ipv4/ip_local_port_range", "ipv6/bindv6only")
"""What decides in a network namespace which ports a socket may have; a new one has the kernel's defaults."""
_CAPABILITY_VERSION_3 = 0x20080522

# include/uapi/linux/rtnetlink.h, if_addr.h
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400
_HEADER = struct.Struct("=IHHII")
_LOOPBACK = 1
"""Its index in every network namespace."""
_IFF_UP = 1
_IFA_F_NODAD = 0x02
_IFA_ADDRESS, _IFA_LOCAL, _RTA_OIF = 1, 2, 4
_MAIN_TABLE, _STATIC, _UNICAST, _SCOPE_LINK = 254, 4, 1, 253


class OwnNamespaces:
    """A new network and mount namespace, which this process is in from now on; a user's are in a new user namespace."""

    def __init__(self) -> None:
        """Enter them, with the loopback up and the host's settings for ports.

        Raises:
            OSError: this user, or the host, may not have them, or the settings cannot be made.
        """
        self._capabilities = int(procfs.status(procfs.read("/proc/thread-self/status"))[b"CapEff"], 16)
        settings = {name: text for name in _SETTINGS if (text := _read(name))}
        try:
            syscall(NR.unshare, CLONE_NEWNET | CLONE_NEWNS)
        except PermissionError:
            enter_user_namespace()
            syscall(NR.unshare, CLONE_NEWNET | CLONE_NEWNS)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            _ask(link, _RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, _LOOPBACK, _IFF_UP, _IFF_UP))
            for family in (socket.AF_INET, socket.AF_INET6):
                with suppress(OSError):  # IPv6 is off
                    _ask(link, _RTM_NEWROUTE, _default_route(family))
        for name, text in settings.items():
            if _read(name) != text:
                if name == "ipv4/ip_local_port_range":  # it must lie above the privileged ports, which may be fewer
                    Path(f"/proc/sys/net/{_SETTINGS[0]}").write_text("0")
                Path(f"/proc/sys/net/{name}").write_text(text)
        if _SETTINGS[0] in settings and _read(_SETTINGS[0]) != settings[_SETTINGS[0]]:
            Path(f"/proc/sys/net/{_SETTINGS[0]}").write_text(settings[_SETTINGS[0]])

    def add(self, host: Host) -> bool:
        """Give the network an address, unless it has it. Returns whether it can be used."""
        packed, family = host.packed, socket.AF_INET if host.version == 4 else socket.AF_INET6
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link, suppress(OSError):
            attributes = _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
            body = struct.pack("=BBBBI", family, 8 * len(packed), _IFA_F_NODAD, 0, _LOOPBACK)
            _ask(link, _RTM_NEWADDR, body + attributes)
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((str(host), 0))
        except OSError:
            return False
        return True

    def enter_empty(self, directories: Iterable[bytes]) -> None:
        """Take a new root directory, which has these directories, as far as they exist, and /proc.

        Raises:
            OSError: it cannot be made.
        """
        plan: dict[bytes, bytes | int] = {b"/": os.stat("/").st_dev}
        for path in directories:
            _find(path, plan)
        syscall(NR.mount, _NO_DEVICE, b"/\0", 0, _MS_REC | _MS_PRIVATE, 0)
        os.umask(0)
        for path, what in plan.items():
            at = _STAGE + path.rstrip(b"/")
            if isinstance(what, bytes):
                os.symlink(what, at)
                continue
            if path != b"/":
                os.mkdir(at)
            if path == b"/" or what != plan[os.path.dirname(path)]:
                syscall(NR.mount, b"tmpfs\0", at + b"\0", b"tmpfs\0", 0, b"mode=0777\0")
        with suppress(FileExistsError):
            os.mkdir(_STAGE + b"/proc")
        syscall(NR.mount, b"/proc\0", _STAGE + b"/proc\0", 0, _MS_BIND | _MS_REC, 0)
        os.chroot(_STAGE)
        os.chdir("/")

    def give_up(self) -> None:
        """Keep only those capabilities that this process had before."""
        halves = [self._capabilities >> shift & 0xFFFFFFFF for shift in (0, 32)]
        data = struct.pack("<6I", *(number for half in halves for number in (half, half, 0)))
        syscall(NR.capset, struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), data)


def _read(name: str) -> str:
    try:
        return Path(f"/proc/sys/net/{name}").read_text().strip()
    except OSError:  # this kernel does not have it, or IPv6 is off
        return ""


def _find(path: bytes, plan: dict[bytes, bytes | int]) -> None:
    """Note how a directory is found: each directory above it with its device, each symbolic link with its target."""
    names = [name for name in path.split(b"/") if name]
    for count, name in enumerate(names, 1):
        at = b"/" + b"/".join(names[:count])
        if name in (b".", b".."):
            return _find(os.path.realpath(path), plan)
        if os.path.islink(at):
            target = os.path.realpath(at)
            _find(target, plan)
            plan.setdefault(at, target)
            return _find(os.path.join(target, *names[count:]), plan)
        try:
            plan.setdefault(at, os.stat(at + b"/.").st_dev)
        except OSError:  # there is none
            return None
    return None


def _ask(link: socket.socket, kind: int, body: bytes) -> None:
    """Have the network changed. Raises OSError."""
    link.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | _CREATE, 1, 0) + body)
    (error,) = struct.unpack_from("=i", link.recv(4096), _HEADER.size)
    if error:
        raise OSError(-error, os.strerror(-error))


def _default_route(family: int) -> bytes:
    """All addresses are reached by the loopback: a socket can be connected to any, though nothing arrives."""
    scope = _SCOPE_LINK if family == socket.AF_INET else 0
    body = struct.pack("=8BI", family, 0, 0, 0, _MAIN_TABLE, _STATIC, scope, _UNICAST, 0)
    return body + _attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value
