"""Calls that a stop has ended in the middle, and the code that goes on with them."""

from __future__ import annotations

from array import array

import pytest

from torpor.arch.x86_64 import NR, ORIG_RAX, RAX, RDX, REGISTER_COUNT, RIP, RSI, RSP, WORD, transfers
from torpor.arch.x86_64.transfers import Transfer

BUFFER, SIZE, STACK, BACK, AT = 0x10000, 1000, 0x7000_0000, 0x40_0002, 0x50_0FD0


def stopped(call: int = NR.write, moved: int = 300) -> array[int]:
    registers = array("Q", bytes(8 * REGISTER_COUNT))
    registers[ORIG_RAX], registers[RAX], registers[RSI], registers[RDX] = call, moved & WORD, BUFFER, SIZE
    registers[RSP], registers[RIP] = STACK, BACK
    return registers


@pytest.mark.parametrize(
    ("call", "moved", "short"),
    [
        (NR.write, 300, True),
        (NR.recvfrom, 999, True),
        (NR.write, 1000, False),
        (NR.write, 0, False),
        (NR.write, -512, False),
        (NR.sendmsg, 300, False),
        (WORD, 300, False),
    ],
)
def test_which_calls_have_moved_a_part(call: int, moved: int, short: bool) -> None:
    assert transfers.is_short(stopped(call, moved)) == short


def test_the_code_and_its_frame_lead_back_to_the_call_for_the_rest() -> None:
    rest = transfers.with_rest(stopped())
    assert (rest.moved, rest.registers[RSI], rest.registers[RDX]) == (300, BUFFER + 300, SIZE - 300)
    assert transfers.is_rest(*rest)
    registers, address, frame = transfers.by_code(rest, AT)
    assert (registers[RIP], registers[RAX], registers[ORIG_RAX]) == (AT, NR.write, WORD)
    assert STACK - address >= 128 + len(frame), "in the red zone of the function that made the call"
    assert transfers.taken_back(registers, AT, frame) == rest


def test_one_that_is_stopped_again_has_the_rest_of_the_rest_left() -> None:
    registers, _, frame = transfers.by_code(transfers.with_rest(stopped()), AT)
    registers[RIP], registers[ORIG_RAX], registers[RAX] = AT + 2, NR.write, 200
    assert transfers.is_short(registers)
    rest = transfers.taken_back(transfers.advanced(registers, AT), AT, frame)
    assert (rest.moved, rest.registers[RSI], rest.registers[RDX]) == (500, BUFFER + 500, SIZE - 500)
    assert transfers.short(rest) == stopped(WORD, 500)


@pytest.mark.parametrize(
    ("change", "moved"),
    [((RAX, 0), 300), ((ORIG_RAX, NR.close), 300), ((RSI, 299), 300), ((RDX, WORD >> 1), 300), ((RAX, 5), 300)],
)
def test_what_no_checkpoint_writes_is_no_rest(change: tuple[int, int], moved: int) -> None:
    registers = transfers.with_rest(stopped()).registers
    registers[change[0]] = change[1]
    assert not transfers.is_rest(*Transfer(registers, moved))
