"""Descriptions that cannot be kept yet, by name: what they are, and what to do about them.

This is the last of all kinds: what no other kind knows is here, and so nothing is passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from torpor.image.image_pb2 import Description
from torpor.objects.description import Describing, GrabbedDescriptors, Held, Kind, Problem, Seen, is_path

CLOSE = "close it before the checkpoint"

ANONYMOUS = {
    "anon_inode:[io_uring]": Problem("the state of an io_uring cannot be read", CLOSE),
    "anon_inode:[userfaultfd]": Problem("what a userfaultfd watches cannot be read", CLOSE),
    "anon_inode:[perf_event]": Problem("counters of the processor cannot be kept", "stop the profiler"),
    "anon_inode:[fanotify]": Problem("what fanotify watches cannot be kept", CLOSE),
    "anon_inode:seccomp notify": Problem("a seccomp listener cannot be kept", "run it without its supervisor"),
}
"""By link, as of Linux 6.18."""

DEVICES = {
    (5, 2): Problem("the master side of a pseudo terminal is not kept yet", "end the session in it"),
    (10, 200): Problem("a network tunnel belongs to this host", CLOSE),
    (10, 229): Problem("a FUSE file system is served by this process", "unmount it"),
    (10, 232): Problem("a virtual machine (KVM) cannot be kept", CLOSE),
    (195, -1): Problem("the state of an NVIDIA GPU cannot be read", "run it without the GPU, or free the GPU"),
    (226, -1): Problem("the state of a GPU cannot be read", "run it without the GPU, or free the GPU"),
}
"""By major and minor number; -1: any minor (Documentation/admin-guide/devices.txt)."""


class Unkept(Kind[None]):
    """Anything else."""

    field = ""

    def matches(self, seen: Seen) -> bool:
        """Everything."""
        return True

    def grab(self, held: Held[None], pidfd: int, *, content: bool) -> None:
        """Nothing."""

    def judge(self, held: Held[None], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """Always refused."""
        yield _problem(held)

    def describe(self, held: Held[None], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Never."""
        raise AssertionError(f"{held.link} is not kept")


def _problem(held: Held[None]) -> Problem:
    mode = held.stat.st_mode
    if is_path(held):
        return Problem("it is open as a name only (O_PATH), and is no file or directory", CLOSE)
    if stat.S_ISBLK(mode):
        return Problem("a block device is open", CLOSE)
    if stat.S_ISCHR(mode):
        major, minor = os.major(held.stat.st_rdev), os.minor(held.stat.st_rdev)
        other = Problem(f"the state of the device {major}:{minor} is not known", CLOSE)
        return DEVICES.get((major, minor)) or DEVICES.get((major, -1)) or other
    if held.link.startswith("anon_inode:bpf") or held.link.startswith("anon_inode:[bpf"):
        return Problem("a BPF program or map belongs to this kernel", CLOSE)
    if stat.S_ISSOCK(mode):
        return Problem("it is a socket of a family that is not kept yet", CLOSE)
    return ANONYMOUS.get(held.link, Problem("it is of a kind that is not known", CLOSE))
