"""Signalfds: the mask, also one that two of them share no more, and what is read from them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, opened
from torpor.image.image_pb2 import Tree


def mask_of(fd: int) -> int:
    """The mask that the kernel shows."""
    (line,) = (one for one in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if one.startswith("sigmask"))
    return int(line.split()[1], 16)


def test_each_keeps_its_mask_and_flags(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(
            """
def made(*numbers, flags=0):
    mask = bytearray(sum(1 << (number - 1) for number in numbers).to_bytes(8, "little"))
    return syscall(NR.signalfd4, -1, mask, 8, flags)
ready(none=made(), first=made(1), last=made(64), many=made(2, 10, 33, 34, flags=os.O_NONBLOCK), own=made(10))
wait()
"""
        )
        masks = {"none": 0, "first": 1, "last": 1 << 63, "many": 1 << 1 | 1 << 9 | 1 << 32 | 1 << 33, "own": 1 << 9}
        with opened(image) as woken:
            assert {name: mask_of(woken(fds[name])) for name in masks} == masks
            assert [os.get_blocking(woken(fds[name])) for name in ("many", "own")] == [False, True]

    acting(body)


def test_what_no_mask_can_have_is_left_out() -> None:
    """SIGKILL and SIGSTOP: only a changed image has them."""
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR).signalfd.mask = 2**64 - 1
    image.processes.add(pid=1).fds.add(fd=3)
    with opened(image) as woken:
        assert mask_of(woken(3)) == 2**64 - 1 & ~(1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1)


def test_it_reads_the_signals_of_who_reads() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR | os.O_NONBLOCK).signalfd.mask = 1 << signal.SIGUSR1 - 1
    image.processes.add(pid=1).fds.add(fd=3)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with opened(image) as woken:
            with pytest.raises(BlockingIOError):
                os.read(woken(3), 128)
            signal.raise_signal(signal.SIGUSR1)
            assert int.from_bytes(os.read(woken(3), 128)[:4], "little") == signal.SIGUSR1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
