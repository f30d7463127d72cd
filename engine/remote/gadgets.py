"""Pieces of a program's own code that the first call in its name runs on: see injection.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torpor import procfs
from torpor.errors import CheckpointFailed
from torpor.remote import memory, x86_64

_Key = tuple[bytes, int, int]
"""Device, inode and offset of a mapping."""


class Gadgets:
    """Where programs' own code has what the first call needs. It is searched for once in each file of code, and what
    was found is looked at again before each use: the file may be another one by now.
    """

    def __init__(self) -> None:
        self._found: dict[_Key, _Gadget] = {}

    def find(self, pid: int, maps: Sequence[procfs.Mapping]) -> tuple[int, int]:
        """Addresses of ``syscall; ret`` and of an rt_sigreturn stub, from the same mapping.

        Raises:
            CheckpointFailed: there is none, as in a program with no C library.
        """
        executable = [m for m in maps if m.perms[2:3] == b"x" and m.inode]
        executable.sort(key=lambda m: (_key(m) not in self._found, b"libc" not in m.name))
        for mapping in executable:
            gadget = self._found.get(_key(mapping))
            if not (gadget and gadget.is_in(pid, mapping)):
                gadget = _search(pid, mapping)
            if gadget:
                self._found[_key(mapping)] = gadget
                return mapping.start + gadget.call, mapping.start + gadget.stub
        raise CheckpointFailed(
            f"process {pid} has no code to return from a signal with (rt_sigreturn): it cannot be entered safely",
            advice="this is so for programs without a C library",
        )


class _Gadget(NamedTuple):
    """What there is in a mapping, by its distance from the beginning."""

    call: int
    stub: int
    code: bytes
    """Of the stub."""

    def is_in(self, pid: int, mapping: procfs.Mapping) -> bool:
        """Whether a mapping has it."""
        if max(self.call + len(x86_64.SYSCALL_RET), self.stub + len(self.code)) > mapping.end - mapping.start:
            return False
        call = memory.read(pid, mapping.start + self.call, len(x86_64.SYSCALL_RET))
        return (call, memory.read(pid, mapping.start + self.stub, len(self.code))) == (x86_64.SYSCALL_RET, self.code)


def _key(mapping: procfs.Mapping) -> _Key:
    return mapping.device, mapping.inode, mapping.offset


def _search(pid: int, mapping: procfs.Mapping) -> _Gadget | None:
    content = memory.read(pid, mapping.start, mapping.end - mapping.start)
    call = content.find(x86_64.SYSCALL_RET)
    for code in x86_64.SIGRETURN_STUBS:
        stub = content.find(code)
        if call >= 0 and stub >= 0:
            return _Gadget(call, stub, code)
    return None
