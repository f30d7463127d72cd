"""Whether a tree lives in an IPC namespace of its own. No other namespace has its System V objects and POSIX queues.

Kept: that it does. What a tree had in the host's namespace stays there when it is killed, and a wake makes it in a
namespace of the tree's own. If the tree removes it there and is woken again, it must not see what is left on the host.

Documented in: ipc_namespaces(7).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torpor.image import image_pb2 as pb
from torpor.objects.part import EnteredTree, TreePart


def is_apart(pid: int) -> bool:
    """Whether a process is in another IPC namespace than we."""
    try:
        return os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")
    except (FileNotFoundError, ProcessLookupError):
        return True  # it ended, or the kernel has no System V objects


class IpcNamespace(TreePart[None, bool, None]):
    """Whether it is the tree's own."""

    def grab(self, tree: EnteredTree) -> bool:
        """Compare it with ours, if the kernel has such namespaces."""
        return os.path.exists("/proc/self/ns/ipc") and is_apart(tree.processes[0].pid)

    def describe(self, grabbed: bool, image: pb.Tree, own_pids: Mapping[int, int], root: int) -> None:
        """Write it to the image."""
        image.own_ipc_namespace = grabbed

    def needs_ipc_namespace(self, image: pb.Tree) -> bool:
        """A tree that had one gets one."""
        return image.own_ipc_namespace

    def host(self) -> None:
        """Nothing depends on the host."""
