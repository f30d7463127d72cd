"""Hosts that withhold something, made for one command: by a real namespace's limit, by a real filter."""

from __future__ import annotations

from pathlib import Path

from tests.users import BIN

# A user namespace whose owner allows no further ones: each has its own limit (namespaces(7)).
WITHOUT_USER_NAMESPACES = """
import os
from torpor.probe import _enter_user_namespace
_enter_user_namespace()
with open("/proc/sys/user/max_user_namespaces", "w") as limit:
    limit.write("0")
os.execv({0!r}, {1!r})
"""

# A filter as container runtimes set one, at its harshest: unshare() kills (seccomp(2); BPF: load the number,
# kill if it is 272, else allow).
UNDER_SECCOMP = """
import os, struct
from torpor.probe import _address, _syscall
PRCTL, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 157, 38, 22, 2
code = bytearray(
    struct.pack("HBBI", 0x20, 0, 0, 0)
    + struct.pack("HBBI", 0x15, 0, 1, 272)
    + struct.pack("HBBI", 0x06, 0, 0, 0x80000000)
    + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
)
program = bytearray(struct.pack("HxxxxxxQ", len(code) // 8, _address(code)))
_syscall(PRCTL, PR_SET_NO_NEW_PRIVS, 1)
_syscall(PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, _address(program))
os.execv({0!r}, {1!r})
"""


def within(host: str, *command: str | Path) -> list[str]:
    """The command that runs `command` in one of these hosts."""
    words = list(map(str, command))
    return [str(BIN / "python"), "-c", host.format(words[0], words)]
