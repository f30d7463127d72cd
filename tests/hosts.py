"""Other hosts, made of namespaces: how one is ended; and those that withhold something from a command, by a real
namespace's limit, by a real filter.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.users import BIN
from torpor.processes import children

# A user namespace whose owner allows no further ones: each has its own limit (namespaces(7)).
WITHOUT_USER_NAMESPACES = """
import os
from torpor.trials import enter_user_namespace
enter_user_namespace()
with open("/proc/sys/user/max_user_namespaces", "w") as limit:
    limit.write("0")
os.execv({0!r}, {1!r})
"""

KILL, TRAP, ERRNO = 0x80000000, 0x00030000, 0x00050000
"""What a filter can answer a call with (seccomp(2)); an errno is added."""
_ALLOW = 0x7FFF0000


def under_filter(answers: Mapping[int, int]) -> str:
    """A system-call filter as container runtimes set one: some calls, by number, are answered so, all others pass."""
    # BPF: load the number; for each answer return it if that is the number; allow.
    code = struct.pack("HBBI", 0x20, 0, 0, 0)
    for number, answer in answers.items():
        code += struct.pack("HBBI", 0x15, 0, 1, number) + struct.pack("HBBI", 0x06, 0, 0, answer)
    code += struct.pack("HBBI", 0x06, 0, 0, _ALLOW)
    return f"""
import os
from torpor.remote.sys import Words, syscall
PRCTL, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 157, 38, 22, 2
code = bytearray.fromhex("{code.hex()}")
syscall(PRCTL, PR_SET_NO_NEW_PRIVS, 1)
syscall(PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, Words(len(code) // 8, code))  # struct sock_fprog
os.execv({{0!r}}, {{1!r}})
"""


_UNSHARE = 272
UNDER_SECCOMP = under_filter({_UNSHARE: KILL})
"""At its harshest: who calls unshare() is killed."""


DENIED = {
    "add_key": 248, "bpf": 321, "fanotify_init": 300, "fsconfig": 431, "fsmount": 432, "fsopen": 430,
    "get_mempolicy": 239, "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425, "kcmp": 312,
    "keyctl": 250, "mbind": 237, "mount": 165, "mount_setattr": 442, "move_mount": 429, "move_pages": 279,
    "open_by_handle_at": 304, "open_tree": 428, "perf_event_open": 298, "pidfd_getfd": 438, "pivot_root": 155,
    "process_madvise": 440, "quotactl": 179, "request_key": 249, "set_mempolicy": 238, "setns": 308, "sethostname": 170,
    "syslog": 103, "umount2": 166, "unshare": _UNSHARE, "userfaultfd": 323, "vhangup": 153,
}  # fmt: skip
"""What Docker's and containerd's default profiles deny to a container without capabilities (EPERM), of what a job or
Torpor could call. They answer clone3 with ENOSYS, so that a C library calls clone(2), and deny that the flags for
namespaces: containers of tests have a limit of 0 namespaces instead."""
_CLONE3 = 435
DEFAULT_PROFILE = under_filter({**dict.fromkeys(DENIED.values(), ERRNO | errno.EPERM), _CLONE3: ERRNO | errno.ENOSYS})


def within(host: str, *command: str | Path) -> list[str]:
    """The command that runs `command` in one of these hosts."""
    words = list(map(str, command))
    return [str(BIN / "python"), "-c", host.format(words[0], words)]


def end(launcher: subprocess.Popen[bytes]) -> None:
    """End what an ``unshare --fork`` has started, and wait for it: in a PID namespace, for all that runs there.

    Not by killing the launcher: what it started would die a moment later, when nobody waits for it any more.
    """
    while launcher.poll() is None:
        for pid in children(launcher.pid):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
