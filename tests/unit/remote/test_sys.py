"""Raw system calls: buffers are held until the call is over."""

from __future__ import annotations

import os
import subprocess
import weakref
from array import array
from sys import executable

import pytest

from torpor.arch.x86_64 import NR
from torpor.remote import sys
from torpor.remote.sys import Words, syscall, try_syscall

WRITEV = 20


def test_a_buffer_is_read_and_written() -> None:
    reader, writer = os.pipe()
    assert syscall(NR.write, writer, b"four", 4) == 4
    into = bytearray(8)
    assert syscall(NR.read, reader, memoryview(into)[2:], 4) == 4
    assert bytes(into) == b"\0\0four\0\0"
    os.close(reader)
    os.close(writer)


def test_words_lead_to_other_buffers() -> None:
    reader, writer = os.pipe()
    vector = Words(b"one ", 4, array("B", b"two"), 3)
    assert syscall(WRITEV, writer, vector, 2) == 7
    assert os.read(reader, 10) == b"one two"
    assert (vector[1], vector[3]) == (4, 3)
    os.close(reader)
    os.close(writer)


class Watched(bytearray):
    """A buffer of which one can see whether it is gone."""


@pytest.mark.parametrize("deep", [False, True])
def test_what_nobody_else_holds_lives_until_the_call_is_over(monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    seen: list[bool] = []
    watch: list[weakref.ref[Watched]] = []

    def call(*words: int) -> int:
        seen.append(watch[0]() is not None)
        return 0

    def passing() -> Watched:
        buffer = Watched(16)
        watch.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(sys, "_call", call)
    try_syscall(NR.read, 0, Words(Words(passing(), 16), 1) if deep else passing(), 16)
    assert seen == [True]
    assert watch[0]() is None


def test_an_error_is_raised_or_told() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscall(NR.close, -1)
    assert try_syscall(NR.close, -1) == -9


COLLECTING = """
import gc, os
from torpor.remote import memory

def act():
    try:
        memory.read(os.getpid(), 4096, 8)
    except OSError as error:
        kept = error  # its traceback leads to this frame, which leads to it: garbage, with all buffers of the call

gc.disable()
act()
gc.collect()
"""


def test_a_call_that_failed_leaves_nothing_that_crashes_a_collection() -> None:
    subprocess.run([executable, "-c", COLLECTING], check=True)
