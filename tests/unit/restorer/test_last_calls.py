"""The instruction by which a process makes its last calls: its own, wherever it has one."""

from __future__ import annotations

import os
from array import array

import pytest

from torpor import procfs
from torpor.arch.x86_64 import SYSCALL
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory import vmas
from torpor.remote import memory
from torpor.remote.blank import Task
from torpor.restorer import last_calls


def mine() -> Task:
    return Task(os.getpid(), "this process", array("Q"))


def space(*, with_vdso: bool, with_code: bool = True) -> pb.AddressSpace:
    """This process's address space, as an image has it."""
    found = pb.AddressSpace()
    for mapping in procfs.mappings(os.getpid()):
        if mapping.name == b"[vdso]":
            if with_vdso:
                found.vdso, found.vdso_end = mapping.start, mapping.end
        elif not vmas.is_special(mapping) and with_code:
            kind = pb.Vma.FILE_PRIVATE if mapping.inode else pb.Vma.ANONYMOUS
            found.vmas.add(start=mapping.start, end=mapping.end, prot=vmas.protection(mapping), kind=kind)
    return found


@pytest.mark.parametrize("with_vdso", [True, False])
def test_it_is_code_of_the_process(with_vdso: bool) -> None:
    image = space(with_vdso=with_vdso)
    at = last_calls._syscall_instruction(mine(), image)
    assert memory.read(os.getpid(), at, len(SYSCALL)) == SYSCALL
    within = image.vdso <= at < image.vdso_end
    assert within == with_vdso
    assert within or any(one.start <= at < one.end and one.prot & 4 for one in image.vmas)


def test_a_process_without_any_is_a_failure_in_words() -> None:
    with pytest.raises(RestoreFailed, match="this process has no code that makes a system call"):
        last_calls._syscall_instruction(mine(), space(with_vdso=False, with_code=False))
