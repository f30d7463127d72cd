"""Registers of a thread that is frozen in a system call: which call it was, and what is left of its time."""

from __future__ import annotations

import struct
from array import array

from torpor.arch import x86_64
from torpor.arch.x86_64 import NR


def interrupted(call: int, rax: int) -> array[int]:
    words = array("Q", bytes(8 * x86_64.REGISTER_COUNT))
    words[x86_64.ORIG_RAX] = call
    words[x86_64.RAX] = rax & x86_64.WORD
    words[x86_64.RSP] = 0x7000
    return words


def test_registers_in_a_restarted_sleep_name_the_sleep() -> None:
    words = interrupted(NR.restart_syscall, -516)
    assert x86_64.was_restarted(words)
    x86_64.recover_call(words, b"\xb8\xe6\x00\x00\x00\x0f\x05")
    assert words[x86_64.ORIG_RAX] == NR.clock_nanosleep
    x86_64.recover_call(words, b"\xb8\x01\x00\x00\x00\x0f\x05")  # write() has no restart block
    assert words[x86_64.ORIG_RAX] == NR.clock_nanosleep


def test_what_is_left_of_a_limit_goes_along() -> None:
    def limit(address: int, size: int) -> bytes:
        assert (address, size) == (0x1000, 16)
        return struct.pack("<qq", 2, 500_000_000)

    sleep = interrupted(NR.nanosleep, -516)
    sleep[x86_64.RDI] = 0x1000
    moved = x86_64.portable(sleep, lambda: 700_000_000, limit)
    assert x86_64.signed(moved.registers[x86_64.RAX]) == -514
    assert moved.registers[x86_64.RDI] == moved.below_address == 0x7000 - 128 - 16
    assert moved.below == struct.pack("<qq", 1, 800_000_000)
    assert sleep[x86_64.RDI] == 0x1000

    poll = interrupted(NR.poll, -516)
    poll[x86_64.RDX] = 1500
    assert x86_64.portable(poll, lambda: 700_000_000, limit).registers[x86_64.RDX] == 800
    poll[x86_64.RDX] = 0xFFFFFFFF
    assert x86_64.portable(poll, lambda: 700_000_000, limit).registers[x86_64.RDX] == 0xFFFFFFFF

    watch = interrupted(NR.epoll_wait, -4)
    watch[x86_64.R10] = 1000
    assert x86_64.portable(watch, lambda: 10**10, limit).registers[x86_64.R10] == 0
    unknown = x86_64.portable(watch, lambda: None, limit)
    assert x86_64.signed(unknown.registers[x86_64.RAX]) == -4

    absolute = interrupted(NR.clock_nanosleep, -516)
    absolute[x86_64.RSI] = x86_64.TIMER_ABSTIME
    absolute[x86_64.RDX] = 0x1000
    assert x86_64.portable(absolute, lambda: 1, limit).registers[x86_64.RDX] == 0x1000
