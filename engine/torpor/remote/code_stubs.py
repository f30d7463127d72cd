"""The instructions in a program's own code that the first injected call uses: see injection.py.

A program without a complete C library (musl, Go, assembly) may lack them. Then they are written to the end of the
vDSO's mapping, behind its code, where there are zeros that nothing executes or reads. The zeros are restored when the
process is detached. If the dumper dies before that, its stubs do no harm, and the next dumper removes them.
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


STUBS = x86_64.SYSCALL_RET + b"\xcc\xcc" + x86_64.SIGRETURN_STUBS[0] + b"\xcc\xcc"
"""The stubs: 16 bytes that are written to the vDSO."""
VDSO = b"[vdso]"


def without_stubs(code: bytes) -> bytes:
    """The code of a vDSO without the stubs that a dumper wrote to it."""
    return without(code, STUBS, len(code) - len(STUBS))


def without(vdso: bytes, code: bytes, at: int) -> bytes:
    """The code of a vDSO without what a dumper wrote to it at this offset."""
    end = at + len(code)
    return vdso[:at] + bytes(len(code)) + vdso[end:] if is_written(vdso[at:end], code) else vdso


def is_written(content: bytes, code: bytes) -> bool:
    """Whether `content` is the code, or a part of it between zeros: it is written and removed word by word."""
    return all(word in (wanted, 0) for word, wanted in zip(_words(content), _words(code), strict=True))


def write(tid: int, at: int, code: bytes) -> None:
    """Write code to the vDSO of a stopped thread."""
    for number, word in enumerate(_words(code)):
        ptrace.poke(tid, at + 8 * number, word)


def vdso_code(maps: Sequence[procfs.Mapping]) -> procfs.Mapping | None:
    """The mapping of the vDSO's code."""
    return next((one for one in maps if one.name == VDSO and one.perms[2:3] == b"x"), None)


def _words(code: bytes) -> Iterator[int]:
    return (word for (word,) in struct.iter_unpack("<q", code))


class VdsoStubs:
    """The stubs in the vDSO of a stopped process. All methods must be called by the thread that traces the process."""

    def __init__(self, tid: int, maps: Sequence[procfs.Mapping]) -> None:
        """
        Args:
            tid: a stopped thread of the process.
            maps: its mappings.

        Raises:
            CheckpointFailed: it has no vDSO, or its vDSO has no room.
        """
        code = vdso_code(maps)
        self._tid, self._at = tid, code.end - len(STUBS) if code else 0
        if not code or not is_written(memory.read(tid, self._at, len(STUBS)), STUBS):
            raise CheckpointFailed(
                f"process {tid} has no code that calls rt_sigreturn, and no vDSO that could hold it: torpor cannot make"
                " system calls in it safely",
                advice="this happens only to programs without a C library that have unmapped their vDSO",
            )
        write(tid, self._at, STUBS)

    @property
    def places(self) -> tuple[int, int]:
        """The addresses of both instructions, as `CodeStubs.find` returns them."""
        return self._at, self._at + STUBS.index(x86_64.SIGRETURN_STUBS[0])

    def remove(self, standing: Iterable[int]) -> None:
        """Remove the stubs, unless a thread executes them: a dumper that died may have left it there.

        Args:
            standing: the instruction pointers of the process's threads.
        """
        if not any(self._at <= address < self._at + len(STUBS) for address in standing):
            write(self._tid, self._at, bytes(len(STUBS)))


class CodeStubs:
    """Finds the instructions that the first call needs in programs' own code.

    Each file is searched once. The result is compared with memory before each use: the file may have changed.
    """

    def __init__(self) -> None:
        self._found: dict[_Key, _FoundStubs] = {}

    def find(self, pid: int, maps: Sequence[procfs.Mapping]) -> tuple[int, int] | None:
        """The addresses of ``syscall; ret`` and of an rt_sigreturn stub in the same mapping; None if there is none."""
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


class _FoundStubs(NamedTuple):
    """The instructions that a mapping holds, as offsets from its start."""

    call: int
    stub: int
    code: bytes
    """The bytes of the rt_sigreturn stub."""

    def is_in(self, pid: int, mapping: procfs.Mapping) -> bool:
        """Whether a mapping holds these instructions."""
        if max(self.call + len(x86_64.SYSCALL_RET), self.stub + len(self.code)) > mapping.end - mapping.start:
            return False
        call = memory.read(pid, mapping.start + self.call, len(x86_64.SYSCALL_RET))
        return (call, memory.read(pid, mapping.start + self.stub, len(self.code))) == (x86_64.SYSCALL_RET, self.code)


def _key(mapping: procfs.Mapping) -> _Key:
    return mapping.device, mapping.inode, mapping.offset


def _search(pid: int, mapping: procfs.Mapping) -> _FoundStubs | None:
    content = memory.read(pid, mapping.start, mapping.end - mapping.start)
    call = content.find(x86_64.SYSCALL_RET)
    for code in x86_64.SIGRETURN_STUBS:
        stub = content.find(code)
        if call >= 0 and stub >= 0:
            return _FoundStubs(call, stub, code)
    return None
