"""Mailboxes: one process leaves a description, and the others that share it each take it."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.leaks import no_more_descriptors
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import mailboxes
from torpor.objects.opening import Opening
from torpor.objects.paths.opener import Openers
from torpor.remote.batch import Call, Struct


def shared() -> Tree:
    """Three processes: all have 0, two have 1 (one of them twice), one has 2, and nobody has 3."""
    image = Tree()
    for _ in range(4):
        image.descriptions.add()
    for pid, descriptions in ((5, (0, 1, 1)), (6, (1, 0)), (7, (0, 2))):
        process = image.processes.add(pid=pid)
        for fd, description in enumerate(descriptions):
            process.fds.add(fd=fd, description=description)
    return image


@contextmanager
def opening(image: Tree) -> Iterator[Opening]:
    found = Opening(image, (0, 1, 2), lambda index: -1, 100, Openers(image))
    try:
        yield found
    finally:
        for fd in found.slots.values():
            os.close(fd)


LIBC = ctypes.CDLL(None, use_errno=True)


def made(call: Call) -> bytes:
    """Make a planned call here, as the batch does it in a process; what is in its message afterwards."""
    fd, message, flags = call.args
    assert isinstance(message, Struct)
    content = ctypes.create_string_buffer(message.content, len(message.content))
    for offset in message.pointers:
        (inside,) = struct.unpack_from("=Q", content, offset)
        struct.pack_into("=Q", content, offset, ctypes.addressof(content) + inside)
    result = LIBC.syscall(ctypes.c_long(call.nr), fd, content, flags)
    assert call.ok(result), os.strerror(ctypes.get_errno())
    return content.raw


def descriptor_in(message: bytes) -> int:
    """The descriptor that was received."""
    return int(struct.unpack_from("=i", message, 72 + 16)[0])


def test_who_has_what() -> None:
    assert mailboxes.holders(shared(), range(4)) == {0: [5, 6, 7], 1: [5, 6], 2: [7], 3: []}
    assert mailboxes.holders(shared(), [2]) == {2: [7]}


def test_a_description_that_only_one_process_has_needs_no_mailbox() -> None:
    with no_more_descriptors(), opening(shared()) as found:
        mailboxes.make(range(4), found)
        assert found.slots.keys() == {0, 1} and min(found.slots.values()) >= found.base


def test_each_of_those_that_share_it_takes_it() -> None:
    with no_more_descriptors(), opening(shared()) as found, tempfile.TemporaryFile() as file:
        mailboxes.make([0], found)
        mailbox = found.slots[0]
        made(mailboxes.leave(mailbox, file.fileno()))
        taken = [descriptor_in(made(mailboxes.take(mailbox, "taking it"))) for _ in range(3)]
        os.lseek(file.fileno(), 77, os.SEEK_SET)
        for fd in taken:
            assert os.lseek(fd, 0, os.SEEK_CUR) == 77, "the description is one"
            assert not os.get_inheritable(fd)
            os.close(fd)


def test_a_mailbox_that_is_empty_is_not_waited_for() -> None:
    with opening(shared()) as found:
        mailboxes.make([0], found)
        with pytest.raises(AssertionError, match="temporarily unavailable"):
            made(mailboxes.take(found.slots[0], "taking it"))
