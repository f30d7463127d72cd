"""Pieces of a program's own code that the first call in its name runs on: see injection.py.

A program without a C library, or with parts of one only (musl, Go, assembly), may have none. It is lent some: in the
vDSO, behind the end of its code, where there are zeros that nobody runs or reads. They are zeros again when it is let
go; what a dumper that died has left there does no harm, and the next one finds it and takes it away.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torpor import procfs
from torpor.arch import x86_64
from torpor.errors import CheckpointFailed
from torpor.remote import memory, ptrace

_Key = tuple[bytes, int, int]
"""Device, inode and offset of a mapping."""


LENT = x86_64.SYSCALL_RET + b"\xcc\xcc" + x86_64.SIGRETURN_STUBS[0] + b"\xcc\xcc"
"""What is lent: 16 bytes."""
VDSO = b"[vdso]"


def without_lent(code: bytes) -> bytes:
    """The code of a vDSO without what a dumper has lent to its process there."""
    return code[: -len(LENT)] + bytes(len(LENT)) if _is_lent(code[-len(LENT) :]) else code


def _is_lent(end: bytes) -> bool:
    """Whether it is what is lent, or a part of it: it is written and taken away word by word."""
    words = zip(_words(end), _words(LENT), strict=True)
    return all(word in (lent, 0) for word, lent in words)


def _words(code: bytes) -> Iterator[int]:
    return (word for (word,) in struct.iter_unpack("<q", code))


class Loan:
    """What is lent to a stopped process. The tracing thread makes all calls."""

    def __init__(self, tid: int, maps: Sequence[procfs.Mapping]) -> None:
        """
        Args:
            tid: a stopped thread of the process.
            maps: its mappings.

        Raises:
            CheckpointFailed: it has no vDSO, or one that is full.
        """
        code = next((one for one in maps if one.name == VDSO and one.perms[2:3] == b"x"), None)
        self._tid, self._at = tid, code.end - len(LENT) if code else 0
        if not code or not _is_lent(memory.read(tid, self._at, len(LENT))):
            raise CheckpointFailed(
                f"process {tid} has no code to return from a signal with (rt_sigreturn), and no vDSO for it: it cannot"
                " be entered safely",
                advice="this is so for programs without a C library that have unmapped their vDSO",
            )
        self._write(LENT)

    @property
    def places(self) -> tuple[int, int]:
        """As `CodeStubs.find`."""
        return self._at, self._at + LENT.index(x86_64.SIGRETURN_STUBS[0])

    def end(self, standing: Iterable[int]) -> None:
        """Take it back, unless a thread stands in it: one that a dumper has left there when it died.

        Args:
            standing: where the process's threads are.
        """
        if not any(self._at <= address < self._at + len(LENT) for address in standing):
            self._write(bytes(len(LENT)))

    def _write(self, code: bytes) -> None:
        for number, word in enumerate(_words(code)):
            ptrace.poke(self._tid, self._at + 8 * number, word)


class CodeStubs:
    """Where programs' own code has what the first call needs. It is searched for once in each file of code, and what
    was found is looked at again before each use: the file may be another one by now.
    """

    def __init__(self) -> None:
        self._found: dict[_Key, _Gadget] = {}

    def find(self, pid: int, maps: Sequence[procfs.Mapping]) -> tuple[int, int] | None:
        """Addresses of ``syscall; ret`` and of an rt_sigreturn stub, from the same mapping; None: it has none."""
        executable = [m for m in maps if m.perms[2:3] == b"x" and m.inode]
        executable.sort(key=lambda m: (_key(m) not in self._found, b"libc" not in m.name))
        for mapping in executable:
            stubs = self._found.get(_key(mapping))
            if not (stubs and stubs.is_in(pid, mapping)):
                stubs = _search(pid, mapping)
            if stubs:
                self._found[_key(mapping)] = stubs
                return mapping.start + stubs.call, mapping.start + stubs.stub
        return None


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
