"""The vDSO: code that the kernel maps into every process. It differs between kernels, and even between processors.

A program looks up the functions of the vDSO once, when it starts, and calls them at these addresses from then on. If
the restoring host has the same vDSO, it is mapped at the old address. Otherwise the program keeps the bytes of its old
one, in plain memory at the old address, with a jump at the start of each function to the same function of the host's
own, which is mapped nearby: a *bridge*. The old code's data pages ([vvar]) are gone, so no thread may be in the middle
of old code.

A function that the host's vDSO lacks becomes a few instructions that make the system call with the same meaning, or
answer -ENOSYS. Where neither is right, the image is refused, but only if a file that the process executes contains the
function's name: a C library looks up only functions that it knew when it was built.

A program may have moved the whole vDSO, or have unmapped all or parts of it, as valgrind and sandboxes do. A process
that has moved only parts of it, changed their protection or written to them is refused.

Documented in: vdso(7), elf(5); ARCH_MAP_VDSO_64 in arch/x86/include/uapi/asm/prctl.h.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from torpor import procfs
from torpor.arch import x86_64
from torpor.arch.x86_64 import NR, TASK_SIZE
from torpor.arch.x86_64.vdso_code import ANSWER_ENOSYS, INSTEAD, JUMP_REACH, JUMP_SIZE, jump
from torpor.errors import ImageDamaged, Reason
from torpor.image import image_pb2 as pb
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.remote.batch import Call, Struct
from torpor.remote.code_stubs import VDSO as CODE
from torpor.remote.code_stubs import without_stubs
from torpor.remote.transfers import without_code
from torpor.util.ranges import Range, subtract

ARCH_MAP_VDSO_64 = 0x2003
MAP_FIXED_NOREPLACE = 0x100000
MAX_SIZE = 1 << 20
"""The maximal size in bytes. Real vDSOs have two pages."""
_PREFIX = "__vdso_"
_LONGEST_NAME = 256
"""The maximal length of a function's name in bytes: longer ones would make the search slow."""

NAMES = (CODE, b"[vvar]", b"[vvar_vclock]")
"""The names of its mappings: data and code."""

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_SHT_DYNSYM = 11
_STT_FUNC = 2

LookedUp = Callable[[pb.Process, str], Sequence[str]]
"""Gives the files of a process that may have looked up a function."""

_REACH = JUMP_REACH - MAX_SIZE
"""The reach of a jump, in bytes."""
_ROOM_TO_GROW = 1 << 28
"""Bytes to leave free below a stack."""


@dataclass(frozen=True)
class Vdso:
    """A host's vDSO and the size of the data pages before it."""

    vvar_size: int
    content: bytes
    parts: Mapping[bytes, Range]
    """The start and end of each mapping, by its name, as offsets from the start of the first."""


@cache
def host() -> Vdso:
    """The vDSO of this host, from our own memory."""
    special = {one.name: one for one in procfs.mappings(os.getpid()) if one.name in NAMES}
    code = special[CODE]
    data = min(one.start for one in special.values())
    parts = {name: (one.start - data, one.end - data) for name, one in special.items()}
    return Vdso(code.start - data, memory.read(os.getpid(), code.start, code.end - code.start), parts)


def functions(content: bytes) -> dict[str, tuple[int, int]]:
    """The functions of a vDSO: offset and size by name.

    Raises:
        ValueError: it is not an ELF file with dynamic symbols.
    """
    try:
        return dict(_functions(content))
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError("it is not an ELF file that this version can read") from error


def _functions(content: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    (table,) = struct.unpack_from("<Q", content, 40)  # e_shoff
    (count,) = struct.unpack_from("<H", content, 60)  # e_shnum
    # Use the section, not the hash table: newer vDSOs have only DT_GNU_HASH, which does not give the number of symbols.
    headers = [_SECTION_HEADER.unpack_from(content, table + k * _SECTION_HEADER.size) for k in range(count)]
    for _, kind, _, _, offset, size, link, *_ in headers:
        if kind != _SHT_DYNSYM:
            continue
        names = headers[link][4]
        for at in range(offset, offset + size, _SYMBOL.size):
            name, info, _, section, value, length = _SYMBOL.unpack_from(content, at)
            if info & 0xF == _STT_FUNC and section:
                start = names + name
                yield (
                    content[start : content.index(b"\0", start, start + _LONGEST_NAME)].decode("ascii"),
                    (value, length),
                )
        return  # a file has one such section


def unsupported(pid: int, found: Sequence[procfs.Mapping], here: Vdso) -> str:
    """Why a process's vDSO cannot be kept; empty if it can.

    Args:
        pid: the process.
        found: its mappings with names in `NAMES`.
        here: the host's vDSO.
    """
    names = [one.name for one in found]
    if len(set(names)) != len(names) or any(one.name not in here.parts for one in found):
        return "it has mapped parts of its vDSO more than once, or in pieces"
    parts = [(one, here.parts[one.name]) for one in found]
    if any(one.end - one.start != end - start for one, (start, end) in parts):
        return "it has unmapped a part of its vDSO's code or data"
    if len({one.start - start for one, (start, _) in parts}) > 1:
        return "it has moved its vDSO's code away from its data"
    if any(one.perms != (b"r-xp" if one.name == CODE else b"r--p") for one in found):
        return "it has changed the protection of its vDSO"
    code = (memory.read(pid, one.start, one.end - one.start) for one in found if one.name == CODE)
    if any(without_stubs(without_code(content)) != here.content for content in code):
        return "it has written into its vDSO's code"
    return ""


def describe(found: Sequence[procfs.Mapping], here: Vdso, space: pb.AddressSpace) -> None:
    """Write the vDSO's address to the image, and which parts of it are unmapped."""
    if not found:
        return
    space.vvar = found[0].start - here.parts[found[0].name][0]
    space.vdso = space.vvar + here.vvar_size
    space.vdso_end = space.vdso + len(here.content)
    space.vdso_content = here.content
    for start, end in subtract([(space.vvar, space.vdso_end)], [(one.start, one.end) for one in found]):
        space.vdso_holes.starts.append(start // PAGE)
        space.vdso_holes.counts.append((end - start) // PAGE)


def _holes(space: pb.AddressSpace) -> list[Range]:
    runs = zip(space.vdso_holes.starts, space.vdso_holes.counts, strict=True)
    return [(start * PAGE, (start + count) * PAGE) for start, count in runs]


def has_code(space: pb.AddressSpace) -> bool:
    """Whether the process has the code of a vDSO."""
    return bool(space.vdso) and not any(start <= space.vdso < end for start, end in _holes(space))


def validate(name: str, process: pb.Process, here: Vdso, looked_up: LookedUp) -> Iterator[Reason]:
    """Say why a process's vDSO cannot be restored."""
    space = process.memory
    old = space.vdso_content
    if not space.vdso:
        return
    if len(old) != space.vdso_end - space.vdso or len(old) > MAX_SIZE or (space.vdso | space.vdso_end) % PAGE:
        raise ImageDamaged(f"{name}: its vDSO is not as a kernel maps one")
    holes = space.vdso_holes
    whole = [(space.vvar, space.vdso_end)]
    if len(holes.starts) != len(holes.counts) or subtract(sorted(_holes(space)), whole):
        raise ImageDamaged(f"{name}: its list of unmapped parts of the vDSO has addresses outside of the vDSO")
    if old == here.content or not has_code(space):
        return
    if holes.starts:
        yield Reason(name, "it has unmapped the data of its vDSO", "restore it on its own kernel")
        return
    try:
        missing = [one for one in _functions_by_offset(old, here.content) if one.names and not one.code]
    except ValueError as error:
        yield Reason(name, f"the vDSO of its kernel cannot be replaced: {error}", "restore it on its own kernel")
        return
    for one in missing:
        if users := [file for known in one.names for file in looked_up(process, known)]:
            words = f"this kernel's vDSO lacks {one.names[0]}, which {users[0]} may call"
            yield Reason(name, words, "restore it on a kernel that has this function")
    for thread in process.threads:
        registers = array("Q", thread.registers)
        if space.vdso <= registers[x86_64.RIP] < space.vdso_end and not x86_64.in_system_call(registers):
            why = "it was frozen within the vDSO of another kernel"
            yield Reason(f"{name}, thread {thread.tid}", why, "take another checkpoint, or restore on its own kernel")
    if _place(space, here) is None:
        yield Reason(name, "there is no room for this kernel's vDSO near its old one")


class _Function(NamedTuple):
    """A function of an old vDSO, and what it becomes."""

    offset: int
    target: int | None
    """The offset of the same function in the new vDSO."""
    names: list[str]
    """If the new one has no such function: the names by which a program looks it up."""
    code: bytes
    """Code to put in its place; empty: the function is neither there nor known."""


def _functions_by_offset(old: bytes, new: bytes) -> list[_Function]:
    """What each function of an old vDSO becomes where the new one is mapped.

    Raises:
        ValueError: one of the two cannot be read, or a function is too short.
    """
    known = functions(new)
    by_offset: dict[int, list[tuple[str, int]]] = {}
    for name, (offset, size) in functions(old).items():
        by_offset.setdefault(offset, []).append((name, size))
    if not by_offset:
        raise ValueError("it has no functions")
    found = []
    for offset, named in by_offset.items():
        names, size = [name for name, _ in named], min(size for _, size in named)
        target = next((known[name][0] for name in names if name in known), None)
        code = next((INSTEAD[name] for name in names if name in INSTEAD), b"") if target is None else b""
        if size < (JUMP_SIZE if target is not None else max(len(code), len(ANSWER_ENOSYS))) or offset + size > len(old):
            raise ValueError(f"its function {names[0]} is too short")
        # Programs look for the names with this beginning; the others are aliases, as common as "time".
        apart = [name for name in names if name.startswith(_PREFIX)] or names
        found.append(_Function(offset, target, apart if target is None else [], code))
    return found


def bridge(old: bytes, at: int, new: bytes, new_at: int) -> bytes:
    """The old vDSO's bytes, mapped at `at`, with jumps to the functions of the new one at `new_at`."""
    content = bytearray(old)
    for one in _functions_by_offset(old, new):
        code = one.code or ANSWER_ENOSYS  # which nobody calls, if it is not known
        if one.target is not None:
            code = jump(new_at + one.target - (at + one.offset + JUMP_SIZE))
        content[one.offset : one.offset + len(code)] = code
    return bytes(content)


def address(space: pb.AddressSpace, here: Vdso) -> int:
    """The address of the host's vDSO in a restored process."""
    if space.vdso_content == here.content:
        return space.vdso
    place = _place(space, here)
    if place is None:
        raise ImageDamaged("there is no room for this kernel's vDSO")
    return place + here.vvar_size


def _place(space: pb.AddressSpace, here: Vdso) -> int | None:
    """A free range for data pages and code near the old vDSO."""
    size = here.vvar_size + len(here.content)
    used = [(vma.start, vma.end, vma.grows_down) for vma in space.vmas]
    used.append((space.vdso, space.vdso_end, False))
    used.sort()
    used.append((TASK_SIZE, TASK_SIZE, False))
    found: list[int] = []
    for (_, end, _), (start, _, grows) in pairwise(used):
        if start - end >= size + (_ROOM_TO_GROW if grows else 0):
            found.append(end)
    nearest = min(found, key=lambda place: abs(place - space.vdso), default=None)
    return nearest if nearest is not None and abs(nearest - space.vdso) < _REACH else None


def places(space: pb.AddressSpace, here: Vdso) -> list[Range]:
    """The address ranges that `restore_calls` uses."""
    if not _is_mapped(space, here):
        return []
    where = address(space, here)
    return [(where - here.vvar_size, where + len(here.content)), (space.vdso, space.vdso_end)]


def _is_mapped(space: pb.AddressSpace, here: Vdso) -> bool:
    """Whether the process gets a vDSO. Without code to read them, data pages of another kernel's vDSO are useless."""
    return has_code(space) or (bool(space.vdso) and space.vdso_content == here.content)


def restore_calls(process: pb.Process, here: Vdso) -> Iterator[Call]:
    """Map the host's vDSO, and the bridge to it if the process's own is another one."""
    space = process.memory
    if not _is_mapped(space, here):
        return
    where = address(space, here)
    # The address is a hint, which the kernel follows because nothing is there; the result is the mapped size.
    words = f"mapping the vDSO at {where:#x}"
    yield Call(NR.arch_prctl, (ARCH_MAP_VDSO_64, where - here.vvar_size), lambda result: result > 0, words)
    if where == space.vdso:
        for start, end in _holes(space):
            yield Call(NR.munmap, (start, end - start), 0, "unmapping what the process had unmapped of its vDSO")
        return
    content = bridge(space.vdso_content, space.vdso, here.content, where)
    size = len(content)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    words = "mapping a bridge from the old vDSO"
    yield Call(NR.mmap, (space.vdso, size, writable, flags, -1, 0), space.vdso, words)
    source = Struct(struct.pack("<QQ", 16, size) + content, (0,))  # struct iovec, then its target
    target = struct.pack("<QQ", space.vdso, size)
    yield Call(NR.process_vm_readv, (process.pid, target, 1, source, 1, 0), size, "building the bridge")
    executable = mmap.PROT_READ | mmap.PROT_EXEC
    yield Call(NR.mprotect, (space.vdso, size, executable), 0, "making the bridge executable")
