"""Calls that move bytes, and that a stop ends in the middle: they go on with the rest, as if nothing had stopped them.

A write() that waits for room in a pipe returns what it has written so far when its thread is stopped. Without a stop it
returns when all is written, and most programs count on that. So the thread makes one more call, for the rest, in code
of ours (`CODE`), which returns to the program what both calls have moved. If the second call moves nothing, because of
a signal or an error, the program gets the short count, as from the kernel. If the thread is stopped again meanwhile, it
has the rest of the rest to move.

The code finds in a frame below the thread's red zone where to return to, and the buffer's address and size.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from torpor.arch.x86_64.registers import (
    ERESTARTNOINTR,
    ORIG_RAX,
    RAX,
    RDX,
    RED_ZONE,
    RIP,
    RSI,
    RSP,
    SYSCALL,
    WORD,
    in_system_call,
    signed,
)
from torpor.arch.x86_64.system_calls import NR

CALLS = frozenset({NR.read, NR.write, NR.sendto, NR.recvfrom})
"""All have the address of a buffer in rsi and its size in rdx."""

_FRAME = struct.Struct("<QQQ")
"""Where to return to, then rsi and rdx as the program had them."""
_STEPS = (
    SYSCALL,
    b"\x48\x85\xc0",  # test %rax, %rax
    b"\x7f\x02",  # jg, over the next one
    b"\x31\xc0",  # xor %eax, %eax
    b"\x48\x01\xf0",  # add %rsi, %rax
    b"\x48\x2b\x44\x24\x08",  # sub 8(%rsp), %rax
    b"\x48\x8b\x74\x24\x08",  # mov 8(%rsp), %rsi
    b"\x48\x8b\x54\x24\x10",  # mov 16(%rsp), %rdx
    b"\xc2" + (RED_ZONE + _FRAME.size - 8).to_bytes(2, "little"),  # ret, and drop the frame
)
CODE = b"".join(_STEPS).ljust(32, b"\xcc")
FRAME_SIZE = _FRAME.size
_ADDS, _SUBTRACTS, _HAS_TOTAL = (len(b"".join(_STEPS[:count])) for count in (4, 5, 6))
"""Offsets in the code."""


class Transfer(NamedTuple):
    """A call of a thread that has moved a part of its bytes."""

    registers: array[int]
    """As if the program itself made the call for the rest, or had got its result."""
    moved: int = 0
    """Bytes that were moved before; 0 if the program has the result."""


def is_short(registers: array[int]) -> bool:
    """Whether a thread was stopped at the end of such a call, and it has moved some of its bytes, but not all."""
    return registers[ORIG_RAX] in CALLS and 0 < signed(registers[RAX]) < registers[RDX]


def with_rest(registers: array[int]) -> Transfer:
    """The call for the rest of what a call has moved that `is_short`."""
    moved = registers[RAX]
    result = array("Q", registers)
    result[RSI] += moved
    result[RDX] -= moved
    result[RAX] = -ERESTARTNOINTR & WORD
    return Transfer(result, moved)


def is_rest(registers: array[int], moved: int) -> bool:
    """Whether registers are those of a call for the rest of another one, which had moved so many bytes."""
    there = in_system_call(registers) and registers[ORIG_RAX] in CALLS
    return there and moved <= registers[RSI] and registers[RDX] + moved <= WORD >> 1


def by_code(transfer: Transfer, at: int) -> tuple[array[int], int, bytes]:
    """The registers with which a thread makes that call by our code; the address and content of its frame.

    Args:
        transfer: a call for the rest.
        at: the address of the code.
    """
    result = _begun(transfer.registers, at)
    address = transfer.registers[RSP] - RED_ZONE - _FRAME.size
    result[RSP] = address
    buffer, size = transfer.registers[RSI] - transfer.moved, transfer.registers[RDX] + transfer.moved
    return result, address, _FRAME.pack(transfer.registers[RIP], buffer, size)


def advanced(registers: array[int], at: int) -> array[int]:
    """The registers for the rest of a call that `is_short` and was made by our code: its frame stays as it is."""
    return _begun(with_rest(registers).registers, at)


def _begun(registers: array[int], at: int) -> array[int]:
    result = array("Q", registers)
    result[RAX], result[ORIG_RAX], result[RIP] = registers[ORIG_RAX], WORD, at
    return result


def is_in_code(registers: array[int], at: int) -> bool:
    """Whether a thread executes our code at this address."""
    return at <= registers[RIP] < at + len(b"".join(_STEPS))


def taken_back(registers: array[int], at: int, frame: bytes) -> Transfer:
    """What a thread does that executes our code.

    Args:
        registers: its registers.
        at: the address of the code.
        frame: the content of the stack, from rsp on.
    """
    back, buffer, size = _FRAME.unpack(frame)
    result = array("Q", registers)
    result[RSP] += RED_ZONE + _FRAME.size
    result[RIP] = back
    where = registers[RIP] - at
    if where == 0 or in_system_call(registers):  # it is about to make the call, or waits in it: both alike
        result[ORIG_RAX] = registers[ORIG_RAX if where else RAX]
        result[RAX] = -ERESTARTNOINTR & WORD
        return Transfer(result, registers[RSI] - buffer)
    result[ORIG_RAX] = WORD
    if where < _ADDS:
        result[RAX] = max(signed(result[RAX]), 0)
    if where <= _ADDS:
        result[RAX] += registers[RSI]
    if where <= _SUBTRACTS:
        result[RAX] -= buffer
    result[RSI], result[RDX] = buffer, size
    return Transfer(result)


def short(transfer: Transfer) -> array[int]:
    """The registers with which the program gets what was moved, as the kernel has it."""
    result = array("Q", transfer.registers)
    result[RSI] -= transfer.moved
    result[RDX] += transfer.moved
    result[RAX], result[ORIG_RAX] = transfer.moved, WORD
    return result
