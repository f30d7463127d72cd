"""The code that takes the place of a vDSO's functions is executed, and does what the function did."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from torpor.arch.x86_64 import vdso_code

Function = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_void_p] * 5)


@contextmanager
def callable_code(code: bytes) -> Iterator[Callable[..., int]]:
    """The code as a C function of five arguments."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory[: len(code)] = code
        start = ctypes.c_char.from_buffer(memory)
        yield Function(ctypes.addressof(start))
        del start


def test_clocks_are_read_by_system_calls() -> None:
    moment = (ctypes.c_int64 * 2)()
    before = time.monotonic_ns()
    with callable_code(vdso_code.INSTEAD["__vdso_clock_gettime"]) as gettime:
        assert gettime(time.CLOCK_MONOTONIC, ctypes.addressof(moment), 0, 0, 0) == 0
    assert before <= moment[0] * 10**9 + moment[1] <= time.monotonic_ns()
    with callable_code(vdso_code.INSTEAD["__vdso_clock_getres"]) as getres:
        assert getres(time.CLOCK_MONOTONIC, ctypes.addressof(moment), 0, 0, 0) == 0
        assert (moment[0], moment[1]) == (0, round(time.clock_getres(time.CLOCK_MONOTONIC) * 10**9))
        assert getres(99, ctypes.addressof(moment), 0, 0, 0) == -errno.EINVAL
    before = int(time.time())
    with callable_code(vdso_code.INSTEAD["__vdso_gettimeofday"]) as gettimeofday:
        assert gettimeofday(ctypes.addressof(moment), 0, 0, 0, 0) == 0
    with callable_code(vdso_code.INSTEAD["__vdso_time"]) as seconds:
        assert before - 1 <= moment[0] <= seconds(0, 0, 0, 0, 0) + 1  # time(2) may lag by a tick


def test_the_processor_is_one_that_exists() -> None:
    numbers = (ctypes.c_uint32 * 2)(2**32 - 1, 2**32 - 1)
    with callable_code(vdso_code.INSTEAD["__vdso_getcpu"]) as getcpu:
        assert getcpu(ctypes.addressof(numbers), ctypes.addressof(numbers) + 4, 0, 0, 0) == 0
    assert numbers[0] in os.sched_getaffinity(0) and numbers[1] < 2**32 - 1


def test_random_bytes_come_from_the_kernel_and_there_is_no_state() -> None:
    room = (ctypes.c_uint8 * 64)()
    with callable_code(vdso_code.INSTEAD["__vdso_getrandom"]) as getrandom:
        assert getrandom(ctypes.addressof(room), 64, os.GRND_NONBLOCK, 1234, 144) == 64
        assert len(set(room)) > 20
        assert getrandom(ctypes.addressof(room), 64, 1 << 30, 1234, 144) == -errno.EINVAL
        assert getrandom(0, 0, 0, ctypes.addressof(room), ctypes.c_void_p(-1)) == -errno.ENOSYS


def test_what_cannot_be_done_is_answered_so() -> None:
    for code in (vdso_code.ANSWER_ENOSYS, vdso_code.INSTEAD["__vdso_sgx_enter_enclave"]):
        with callable_code(code) as answer:
            assert answer(1, 2, 3, 4, 5) == -errno.ENOSYS


@pytest.mark.parametrize("distance", [0, 16, -vdso_code.JUMP_SIZE, 2**31 - 1, -(2**31)])
def test_a_jump_has_its_distance(distance: int) -> None:
    assert struct.unpack("<Bi", vdso_code.jump(distance)) == (0xE9, distance)


def test_a_jump_is_taken() -> None:
    code = vdso_code.jump(11) + b"\xcc" * 11 + vdso_code.ANSWER_ENOSYS
    with callable_code(code) as leaps:
        assert leaps(0, 0, 0, 0, 0) == -errno.ENOSYS
