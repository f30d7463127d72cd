"""A userfaultfd that an ordinary user may make: what it watches, and what it says when it may not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from tests.unit.remote.test_written import Memory
from torpor.arch.x86_64 import NR
from torpor.procfs import PAGE, flagged_mappings
from torpor.remote import userfaultfd
from torpor.remote.sys import syscall


@pytest.fixture
def fd() -> Iterator[int]:
    """A userfaultfd of this process."""
    try:
        made = syscall(NR.userfaultfd, userfaultfd.OPEN_FLAGS)
    except OSError as error:
        pytest.skip(f"there is none here: {error}")
    yield made
    os.close(made)


def is_watched(memory: Memory) -> bool:
    (found,) = (vma for vma in flagged_mappings(os.getpid()) if vma.mapping.start <= memory.start < vma.mapping.end)
    return b"um" in found.flags


def test_missing_pages_of_a_mapping_are_watched_until_the_end(fd: int) -> None:
    memory = Memory()
    memory.map.write(b"1" * (memory.end - memory.start))  # no page of it is missing: nobody waits
    userfaultfd.begin(fd)
    assert userfaultfd.register(fd, memory.start, memory.end, userfaultfd.MISSING)
    assert is_watched(memory)
    userfaultfd.unregister(fd, memory.start, memory.end)
    assert not is_watched(memory)


def test_what_may_not_be_watched_is_told(fd: int) -> None:
    memory = Memory()
    userfaultfd.begin(fd)
    memory.map.write(b"1" * (memory.end - memory.start))
    assert not userfaultfd.register(fd, memory.start + 1, memory.end, userfaultfd.MISSING), "not a page's start"
    other = syscall(NR.userfaultfd, userfaultfd.OPEN_FLAGS)
    try:
        userfaultfd.begin(other)
        assert userfaultfd.register(other, memory.start, memory.end, userfaultfd.MISSING)
        assert not userfaultfd.register(fd, memory.start, memory.end, userfaultfd.MISSING), "another one watches it"
    finally:
        os.close(other)


def test_a_feature_that_the_kernel_lacks_is_an_error(fd: int) -> None:
    with pytest.raises(OSError) as caught:
        userfaultfd.begin(fd, 1 << 63)
    assert caught.value.errno == errno.EINVAL


def test_why_no_program_runs_before_its_memory_is_filled(fd: int) -> None:
    """An ordinary user's userfaultfd serves no fault inside a system call, and does not follow a fork."""
    memory = Memory()
    userfaultfd.begin(fd)
    assert userfaultfd.register(fd, memory.start, memory.end, userfaultfd.MISSING)
    with open("/dev/zero", "rb", buffering=0) as zeros, pytest.raises(OSError) as caught:
        zeros.readinto(memory.map)
    assert caught.value.errno == errno.EFAULT
    child = os.fork()
    if child == 0:
        os._exit(memory.map[0])  # nobody is asked: it is a page of zeros
    assert os.waitpid(child, 0)[1] == 0


def test_memory_that_has_gone_is_told() -> None:
    memory = Memory()
    reader, writer = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            made = syscall(NR.userfaultfd, userfaultfd.OPEN_FLAGS)
            userfaultfd.begin(made)
            os.set_inheritable(made, True)
            os.write(writer, b"%d" % made)
            os.read(hold, 1)
        finally:
            os._exit(0)
    number = int(os.read(reader, 8))
    pidfd = os.pidfd_open(pid)
    copy = syscall(NR.pidfd_getfd, pidfd, number, 0)
    os.write(release, b"!")
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        userfaultfd.register(copy, memory.start, memory.start + PAGE, userfaultfd.MISSING)
    for one in (reader, writer, hold, release, pidfd, copy):
        os.close(one)
