"""The bridge between vDSOs: every function of the old one leads to the same one of the new."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.arch.x86_64 import ORIG_RAX, RAX, REGISTER_COUNT, RIP, WORD
from torpor.arch.x86_64.vdso_code import ANSWER_ENOSYS, INSTEAD
from torpor.errors import ImageDamaged
from torpor.image import image_pb2 as pb
from torpor.objects.memory import vdso

AT = 0x7FFF_F7FC_1000


def another() -> bytes:
    """A vDSO that differs from the host's."""
    content = bytearray(vdso.host().content)
    content[-1] ^= 1  # behind the sections
    return bytes(content)


def nobody(process: pb.Process, name: str) -> list[str]:
    """No file has looked up anything."""
    return []


def anybody(process: pb.Process, name: str) -> list[str]:
    """A library has looked up everything."""
    return ["/lib/libc.so.6"]


def renamed(content: bytes, old: bytes, new: bytes) -> bytes:
    """A vDSO with another name of a function, of the same length. Its alias is the end of it, in the same bytes."""
    assert len(old) == len(new) and b"\0" + old + b"\0" in content
    return content.replace(b"\0" + old + b"\0", b"\0" + new + b"\0").replace(
        b"\0" + old[7:] + b"\0", b"\0" + new[7:] + b"\0"
    )


def process(content: bytes, rip: int = 0x1000, orig_rax: int = -1, rax: int = 0) -> pb.Process:
    told = pb.Process(pid=100)
    told.memory.vdso = AT
    told.memory.vdso_end = AT + len(content)
    told.memory.vdso_content = content
    told.memory.vmas.add(start=AT - 0x10000, end=AT - 0x8000, kind=pb.Vma.ANONYMOUS)
    registers = [0] * REGISTER_COUNT
    registers[RIP], registers[ORIG_RAX], registers[RAX] = rip, orig_rax & WORD, rax & WORD
    told.threads.add(tid=100, registers=struct.pack(f"<{REGISTER_COUNT}Q", *registers))
    return told


def test_the_functions_of_the_hosts_own_are_found() -> None:
    found = vdso.functions(vdso.host().content)
    assert {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_getcpu"} <= found.keys()
    assert all(0 < offset < len(vdso.host().content) and size for offset, size in found.values())


@given(st.integers(-(2**30), 2**30).map(lambda pages: pages & -4096))
def test_every_jump_leads_to_the_same_function(distance: int) -> None:
    old, new = another(), vdso.host().content
    built = vdso.bridge(old, AT, new, AT + distance)
    assert len(built) == len(old)
    for name, (offset, _) in vdso.functions(old).items():
        opcode, jump = struct.unpack_from("<Bi", built, offset)
        assert opcode == 0xE9
        assert AT + offset + 5 + jump == AT + distance + vdso.functions(new)[name][0]


def test_the_same_vdso_goes_where_it_was() -> None:
    here = vdso.host()
    same = process(here.content)
    assert vdso.address(same.memory, here) == AT
    assert [call.args[1] for call in vdso.restore_calls(same, here)] == [AT - here.vvar_size]


def test_another_ones_bridge_is_built_beside_it() -> None:
    here = vdso.host()
    other = process(another())
    where = vdso.address(other.memory, here)
    taken = [(vma.start, vma.end) for vma in other.memory.vmas] + [(AT, other.memory.vdso_end)]
    assert all(where + len(here.content) <= start or end <= where - here.vvar_size for start, end in taken)
    assert not list(vdso.validate("process 100", other, here, anybody))
    assert len(list(vdso.restore_calls(other, here))) == 4


def test_a_thread_in_the_midst_of_another_ones_code_is_refused() -> None:
    here = vdso.host()
    (reason,) = vdso.validate("process 100", process(another(), rip=AT + 0x800), here, anybody)
    assert "within the vDSO of another kernel" in reason.why
    waiting = process(another(), rip=AT + 0x800, orig_rax=230, rax=-514)
    assert not list(vdso.validate("process 100", waiting, here, anybody))


def test_a_function_that_this_kernel_lacks_becomes_a_system_call() -> None:
    here = replace(vdso.host(), content=renamed(vdso.host().content, b"__vdso_getcpu", b"__vdso_nowher"))
    old = another()
    assert not list(vdso.validate("process 100", process(old), here, anybody))
    built = vdso.bridge(old, AT, here.content, AT + 0x10000)
    offset, _ = vdso.functions(old)["__vdso_getcpu"]
    assert built[offset:].startswith(INSTEAD["__vdso_getcpu"])
    elsewhere, _ = vdso.functions(old)["__vdso_clock_gettime"]
    assert built[elsewhere] == 0xE9


def test_a_function_without_a_system_call_is_refused_only_if_something_may_have_looked_it_up() -> None:
    old = renamed(another(), b"__vdso_getcpu", b"__vdso_unlock")
    asked: list[str] = []

    def known_to(file: str) -> vdso.LookedUp:
        def looked_up(process: pb.Process, name: str) -> list[str]:
            asked.append(name)
            return [file] if file else []

        return looked_up

    assert not list(vdso.validate("process 100", process(old), vdso.host(), known_to("")))
    (reason,) = vdso.validate("process 100", process(old), vdso.host(), known_to("/lib/libc.so.6"))
    assert "lacks __vdso_unlock" in reason.why and "/lib/libc.so.6 may call" in reason.why
    assert asked == ["__vdso_unlock", "__vdso_unlock"]  # not the alias, which is an ordinary word
    built = vdso.bridge(old, AT, vdso.host().content, AT + 0x10000)
    offset, _ = vdso.functions(old)["__vdso_unlock"]
    assert built[offset:].startswith(ANSWER_ENOSYS)


def test_a_function_that_is_too_short_for_what_takes_its_place_is_refused() -> None:
    old = bytearray(renamed(another(), b"__vdso_getcpu", b"__vdso_unlock"))
    offset, size = vdso.functions(bytes(old))["__vdso_unlock"]
    at = old.index(struct.pack("<QQ", offset, size))
    while at >= 0:
        struct.pack_into("<QQ", old, at, offset, len(ANSWER_ENOSYS) - 1)
        at = old.find(struct.pack("<QQ", offset, size))
    (reason,) = vdso.validate("process 100", process(bytes(old)), vdso.host(), nobody)
    assert "unlock is too short" in reason.why


@given(st.binary(max_size=300))
def test_what_is_no_vdso_is_told_as_such(junk: bytes) -> None:
    whole = junk.ljust(4096, b"\0")
    try:
        reasons = list(vdso.validate("process 100", process(whole), vdso.host(), nobody))
    except ImageDamaged:
        return
    assert all(reason.subject.startswith("process 100") for reason in reasons)


def test_a_vdso_of_impossible_size_is_damage() -> None:
    broken = process(os.urandom(4096))
    broken.memory.vdso_end += 4096
    with pytest.raises(ImageDamaged):
        list(vdso.validate("process 100", broken, vdso.host(), anybody))


def test_what_the_process_has_unmapped_of_it_is_unmapped_again() -> None:
    here = vdso.host()
    one = process(here.content)
    one.memory.vvar = AT - here.vvar_size
    one.memory.vdso_holes.starts.append(one.memory.vvar // 4096)
    one.memory.vdso_holes.counts.append(here.vvar_size // 4096)
    assert not list(vdso.validate("process 100", one, here, anybody))
    assert vdso.has_code(one.memory)
    assert [call.args for call in vdso.restore_calls(one, here)][1:] == [(one.memory.vvar, here.vvar_size)]
    other = replace(here, content=another())
    (reason,) = vdso.validate("process 100", one, other, anybody)
    assert "unmapped the data" in reason.why
    one.memory.vdso_holes.counts[0] += len(here.content) // 4096
    assert not vdso.has_code(one.memory)
    assert not list(vdso.validate("process 100", one, other, anybody))
    assert not list(vdso.restore_calls(one, other))
    assert vdso.places(one.memory, other) == []
    one.memory.vdso_holes.counts[0] += 1
    with pytest.raises(ImageDamaged, match="outside of the vDSO"):
        list(vdso.validate("process 100", one, here, anybody))
