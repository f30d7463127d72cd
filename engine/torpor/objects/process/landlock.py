"""Landlock domains, which restrict a process's access to files and other processes. Only a process inside can tell.

Refused: a process in a domain that we are not in, if that can be found out.

Documented in: landlock(7).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import Answers, ProcessPart
from torpor.objects.process.texts import Texts
from torpor.probe import probe
from torpor.remote.batch import Batch, Out, Result
from torpor.remote.sys import try_syscall

KCMP_VM, PR_GET_DUMPABLE = 1, 3


@lru_cache(maxsize=1)
def _own_status(_: int) -> Mapping[bytes, bytes]:
    return procfs.status(procfs.read("/proc/self/status"))


class Landlock(ProcessPart[int | None, None]):
    """Whether the process is in a Landlock domain."""

    def ask(self, batch: Batch, texts: Texts) -> int | None:
        """Let it look at us, which Landlock forbids inside of a domain: nothing else shows one.

        It tries kcmp(2) or, where that is denied to all, to read the link to our program.

        None if other reasons could forbid it: another user, another PID namespace, or that nobody may look at us, as
        after a change of user ids without execve(2).
        """
        mine, status = _own_status(os.getpid()), texts.status
        alike = all(status[name].split() == mine[name].split() for name in (b"Uid", b"Gid"))
        namespaces = [os.readlink(f"/proc/{pid}/ns/pid") for pid in (texts.pid, "self")]
        dumpable = try_syscall(NR.prctl, PR_GET_DUMPABLE) == 1
        if not alike or not dumpable or int(mine[b"CapPrm"], 16) or namespaces[0] != namespaces[1]:
            return None
        if not probe().kcmp:
            return batch.add(NR.readlink, f"/proc/{os.getpid()}/exe\0".encode(), Out(16), 16)
        return batch.add(NR.kcmp, Result(batch.add(NR.getpid)), os.getpid(), KCMP_VM, 0, 0)

    def unsupported(self, asked: int | None, answers: Answers) -> Iterator[str]:
        """It was forbidden."""
        if asked is not None and answers.replies.result(asked) in (-errno.EPERM, -errno.EACCES):
            yield "it may not look at its user's other processes: it is in a Landlock domain, which is not kept"

    def describe(self, asked: int | None, answers: Answers, out: pb.Process) -> None:
        """Write nothing: a process in a domain is refused."""

    def host(self) -> None:
        """The calls depend on nothing."""
