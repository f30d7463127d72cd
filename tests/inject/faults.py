"""Faults where the kernel puts them: the calls of a driver's handler, and one of them that fails or is the last.

What does it is inject.c, as the tracer of that process: the engine and the C library below it are what they always are.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.harness import Conversation, Driver, EngineError, Failed, alive, wait_until
from torpor.arch.x86_64 import NR

SOURCE = Path(__file__).with_name("inject.c")

PATIENCE = 300.0
"""Seconds until an act hangs: thousands of stops for the tracer take long on a machine that has much else to do."""
KILLED = -1
"""The exit code of who was."""

_OPEN = (errno.EMFILE, errno.EACCES, errno.EIO)
_FILE = (errno.EIO,)
_WRITE = (errno.ENOSPC, errno.EIO)
_MEMORY = (errno.ENOMEM,)
_NAME = (errno.ENOENT, errno.EACCES)
_PROCESS = (errno.EPERM, errno.ESRCH)
MAY_GIVE: dict[str, tuple[int, ...]] = {
    "access": _NAME,
    "accept4": (errno.EMFILE, errno.ENOMEM),
    "bind": (errno.EADDRINUSE, errno.EACCES),
    "chdir": _NAME,
    "chmod": (errno.EPERM,),
    "clone": (errno.EAGAIN, errno.ENOMEM),
    "clone3": (errno.EAGAIN, errno.ENOMEM),
    "close": (errno.EIO,),
    "connect": (errno.ECONNREFUSED, errno.EAGAIN),
    "copy_file_range": _WRITE,
    "dup": (errno.EMFILE,),
    "dup2": (errno.EMFILE,),
    "dup3": (errno.EMFILE,),
    "epoll_create1": (errno.EMFILE, errno.ENOMEM),
    "epoll_ctl": (errno.ENOMEM, errno.ENOSPC),
    "eventfd2": (errno.EMFILE, errno.ENOMEM),
    "execve": (errno.ENOMEM, errno.EACCES),
    "fallocate": _WRITE,
    "fcntl": (errno.EMFILE, errno.EPERM),
    "fdatasync": _WRITE,
    "flock": (errno.ENOLCK,),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "fstat": _FILE,
    "fsync": _WRITE,
    "ftruncate": _WRITE,
    # Not ENOENT: /proc gives it for a process that is gone, and readdir(3) takes it for the end of the list.
    "getdents64": (errno.EIO,),
    # Not ENOPROTOOPT: an option that a kernel does not know it never knows.
    "getsockopt": (errno.ENOMEM,),
    "inotify_add_watch": (errno.ENOSPC, errno.EACCES),
    "inotify_init1": (errno.EMFILE,),
    "ioctl": (errno.ENOTTY, errno.EPERM, errno.ENOMEM),
    "kcmp": _PROCESS,
    "kill": _PROCESS,
    "link": (errno.EPERM, errno.ENOSPC),
    "listen": (errno.EADDRINUSE,),
    "lseek": (errno.ESPIPE,),
    "lstat": _NAME,
    "madvise": (errno.EAGAIN, errno.EINVAL),
    "memfd_create": (errno.EMFILE, errno.ENOMEM),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "mkdirat": (errno.ENOSPC, errno.EACCES),
    # Not mmap: Python's Thread.start() waits for ever for a thread whose first memory is refused (3.11), and so may we.
    "mount": (errno.EPERM,),
    "mprotect": _MEMORY,
    "mremap": _MEMORY,
    "munmap": _MEMORY,
    "newfstatat": (errno.EACCES, errno.ENOENT),
    "open": _OPEN,
    "openat": (*_OPEN, errno.ENOENT),
    "openat2": _OPEN,
    "pidfd_getfd": (errno.EMFILE, errno.EPERM),
    "pidfd_open": (errno.EMFILE, errno.ENOMEM),
    "pipe2": (errno.EMFILE,),
    "poll": _MEMORY,
    "prctl": (errno.EINVAL, errno.EPERM),
    "pread64": _FILE,
    "preadv": _FILE,
    "process_vm_readv": (errno.EFAULT, errno.EPERM, errno.ESRCH, errno.ENOMEM),
    "process_vm_writev": (errno.EFAULT, errno.EPERM, errno.ESRCH, errno.ENOMEM),
    "ptrace": (errno.ESRCH, errno.EPERM, errno.EIO),
    "pwrite64": _WRITE,
    "pwritev": _WRITE,
    "read": _FILE,
    "readlink": _NAME,
    "readlinkat": _NAME,
    "recvfrom": (errno.EIO, errno.ENOMEM),
    "recvmsg": (errno.EIO, errno.ENOMEM),
    "rename": _WRITE,
    "renameat": _WRITE,
    "rmdir": (errno.EBUSY,),
    "sched_yield": (),
    "sendmsg": (errno.ENOBUFS, errno.ETOOMANYREFS),
    "sendto": (errno.ENOBUFS,),
    "setsockopt": (errno.EPERM, errno.ENOMEM),
    "setns": (errno.EPERM,),
    "socket": (errno.EMFILE, errno.EAFNOSUPPORT),
    "socketpair": (errno.EMFILE,),
    "stat": _NAME,
    "statfs": _FILE,
    "statx": _NAME,
    "symlink": (errno.ENOSPC,),
    "timerfd_create": (errno.EMFILE,),
    "tgkill": _PROCESS,
    "unlink": (errno.EACCES,),
    "unlinkat": (errno.EACCES,),
    "unshare": (errno.EPERM, errno.ENOSPC),
    "userfaultfd": (errno.EMFILE, errno.EPERM),
    "utimensat": (errno.EPERM,),
    "vfork": (errno.EAGAIN, errno.ENOMEM),
    "wait4": (errno.ECHILD,),
    "waitid": (errno.ECHILD,),
    "write": _WRITE,
}
"""What a call may give that is no fault of who makes it. Calls that cannot fail so, as getpid(2), are not in it."""


@dataclass(frozen=True)
class Fault:
    """What is to become of one call of an act."""

    call: str
    """Its name."""
    number: int
    """Which of that name, from 1."""
    error: int = 0
    """What it gives; 0: it is made."""
    kill: str = ""
    """When the process is killed: "before" or "after" it."""

    def arguments(self) -> list[str]:
        """For inject.c."""
        which = [self.kill or "error", str(_NUMBERS[self.call]), str(self.number)]
        return which if self.kill else [*which, str(self.error)]

    def __str__(self) -> str:
        return f"{self.call} {self.number}: " + (f"killed {self.kill}" if self.kill else errno.errorcode[self.error])


@dataclass
class Outcome:
    """What came of an act."""

    said: dict[str, Any]
    """The handler's answer; empty if there was none."""
    exit_code: int = 0
    """Of torpor.errors; 70 when it was none of its errors, `KILLED`."""
    message: str = ""
    hit: bool = False
    """Whether the act came to that call."""
    talk: Conversation | None = None
    """Still open, when a restore succeeded."""


class Injector:
    """Does acts of a driver's, with a fault in each."""

    def __init__(self, program: Path, driver: Driver, folder: Path) -> None:
        self._program = program
        self._driver = driver
        self._list = folder / "calls"

    def count(self, **request: object) -> tuple[list[str], Outcome]:
        """Do an act without a fault: the names of its calls, and what came of it."""
        outcome = self._act(["count", str(self._list)], request)
        return [name(int(line)) for line in self._list.read_text().splitlines()], outcome

    def act(self, fault: Fault, **request: object) -> Outcome:
        """Do an act with a fault; who is killed is the handler."""
        return self._act(fault.arguments(), request)

    def _act(self, arguments: list[str], request: dict[str, object]) -> Outcome:
        start = self._driver.log.stat().st_size
        talk = self._driver.ask(attended=True, **request)
        keep = False
        with self._tracing(talk.handler, arguments) as tracer:
            try:
                talk.socket.sendall(b"go\n")
                outcome = Outcome(talk.next(PATIENCE))
                keep = request["do"] == "restore"
                if keep:
                    outcome.talk = talk
            except EngineError as error:
                outcome = Outcome({}, error.exit_code, error.message)
            except (EOFError, ConnectionError):
                logged = self._driver.log.read_bytes()[start:].decode(errors="replace")
                outcome = Outcome({}, 70 if logged else KILLED, logged)
            except TimeoutError:
                os.kill(talk.handler, signal.SIGQUIT)
                wait_until(lambda: self._driver.log.stat().st_size > start or None, "where the handler hangs")
                os.kill(talk.handler, signal.SIGKILL)
                raise Failed(f"it hangs\n{self._driver.log.read_bytes()[start:].decode()}") from None
            finally:
                if not keep:
                    talk.close()
            if not keep:
                with suppress(Failed):
                    wait_until(lambda: not alive(talk.handler), "the handler's end", 10)
                with suppress(ProcessLookupError):
                    os.kill(talk.handler, signal.SIGKILL)
            else:
                tracer.kill()
            told = tracer.communicate(timeout=PATIENCE)[0]
        outcome.hit = "hit" in told
        return outcome

    @contextmanager
    def _tracing(self, pid: int, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen([self._program, str(pid), *arguments], stdout=subprocess.PIPE, text=True) as tracer:
            try:
                assert tracer.stdout and tracer.stdout.readline() == "ready\n"
                yield tracer
            finally:
                tracer.kill()


def name(nr: int) -> str:
    """Of a system call."""
    return _NAMES[nr]


def _all_names() -> dict[int, str]:
    """The calls by their numbers as the headers have them."""
    text = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {nr.value: nr.name for nr in NR}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1].startswith("__NR_") and words[2].isdigit():
            found[int(words[2])] = words[1].removeprefix("__NR_")
    return found


_NAMES = _all_names()
_NUMBERS = {name: number for number, name in _NAMES.items()}
