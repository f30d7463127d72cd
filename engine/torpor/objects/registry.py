"""The parts of processes, threads and trees, in the order in which a restore sets them within a stage.

Open file descriptions have a registry of their own: `torpor.objects.fds.descriptors.KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from torpor.objects.part import ProcessPart, ThreadPart, TreePart
from torpor.objects.process.credentials import Ids, ThreadCredentials
from torpor.objects.process.keyrings import Keyrings
from torpor.objects.process.landlock import Landlock
from torpor.objects.process.limits import Limits
from torpor.objects.process.mounts import Mounts
from torpor.objects.process.process_attributes import ProcessAttributes, ProcFiles
from torpor.objects.process.seccomp import Filters
from torpor.objects.process.signals import Actions, Queue, ThreadQueue
from torpor.objects.process.thread_attributes import ThreadAttributes
from torpor.objects.process.threads import ThreadState
from torpor.objects.process.timers import Timers
from torpor.objects.sysv.ipc_namespace import IpcNamespace
from torpor.objects.sysv.message_queues import MessageQueues
from torpor.objects.sysv.segments import Segments
from torpor.objects.sysv.semaphore_sets import SemaphoreSets

ATTRIBUTES: Final = ProcessAttributes()
FILES: Final = ProcFiles()
LIMITS: Final = Limits()
THREAD_STATE: Final = ThreadState()
CREDENTIALS: Final = ThreadCredentials()

PROCESS_PARTS: Final[tuple[ProcessPart[Any, Any], ...]] = (
    Landlock(),
    Ids(),
    ATTRIBUTES,
    FILES,
    Actions(),
    Timers(),
    Queue(),
    LIMITS,
)
THREAD_PARTS: Final[tuple[ThreadPart[Any, Any], ...]] = (
    THREAD_STATE,
    ThreadAttributes(),
    ThreadQueue(),
    Filters(),
    CREDENTIALS,
)
TREE_PARTS: Final[tuple[TreePart[Any, Any, Any], ...]] = (
    Keyrings(),
    IpcNamespace(),
    Segments(),
    SemaphoreSets(),
    MessageQueues(),
    Mounts(),
)

Part: TypeAlias = ProcessPart[Any, Any] | ThreadPart[Any, Any] | TreePart[Any, Any, Any]


def hosts() -> Mapping[Part, Any]:
    """What each part must know of this process and its host."""
    found: dict[Part, Any] = {part: part.host() for part in PROCESS_PARTS}
    found.update((part, part.host()) for part in THREAD_PARTS)
    found.update((part, part.host()) for part in TREE_PARTS)
    return found
