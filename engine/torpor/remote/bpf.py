"""Which actions a seccomp filter may return for a system call, whatever its arguments.

A filter is a classic BPF program over struct seccomp_data; it only jumps forward. Here the call's number and the
architecture are known, everything else is unknown. A jump that depends on something unknown is followed both ways.

Documented in: Documentation/userspace-api/seccomp_filter.rst, and Documentation/networking/filter.rst for the code.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

# Actions (include/uapi/linux/seccomp.h): the upper half of the returned value.
KILL_PROCESS, KILL_THREAD, TRAP, ERRNO = 0x80000000, 0x00000000, 0x00030000, 0x00050000
USER_NOTIF, TRACE, LOG, ALLOW = 0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000
_ACTION = 0xFFFF0000

INSTRUCTION = struct.Struct("<HBBI")  # struct sock_filter: code, jt, jf, k
_DATA_SIZE = 64
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_AUDIT_ARCH_X86_64 = 0xC000003E
_MASK = 0xFFFFFFFF
_MOST_STATES = 200_000

# Instructions that seccomp_check_filter allows (kernel/seccomp.c).
_LD_ABS, _LD_LEN, _LDX_LEN, _LD_IMM, _LDX_IMM, _LD_MEM, _LDX_MEM = 0x20, 0x80, 0x81, 0x00, 0x01, 0x60, 0x61
_ST, _STX, _TAX, _TXA, _RET_K, _RET_A, _NEG, _JA = 0x02, 0x03, 0x07, 0x87, 0x06, 0x16, 0x84, 0x05
_ALU, _JMP, _CLASS, _OPERATION, _BY_X = 0x04, 0x05, 0x07, 0xF0, 0x08
_ADD, _SUB, _MUL, _DIV, _OR, _AND, _LSH, _RSH, _XOR = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0
_JEQ, _JGT, _JGE, _JSET = 0x10, 0x20, 0x30, 0x40

Word = int | None
"""A 32-bit value; None if it is unknown."""


class Unreadable(Exception):
    """The program has an unknown instruction, or too many paths."""


class _State(NamedTuple):
    at: int
    a: Word
    x: Word
    memory: tuple[Word, ...]


def actions(code: bytes, nr: int) -> frozenset[int]:
    """All actions that a filter may return for the system call `nr`.

    Raises:
        Unreadable: the actions cannot be determined.
    """
    program = list(INSTRUCTION.iter_unpack(code))
    found: set[int] = set()
    waiting = [_State(0, 0, 0, (0,) * 16)]
    seen = set(waiting)
    while waiting:
        for state in _step(waiting.pop(), program, nr, found):
            if state not in seen:
                if len(seen) == _MOST_STATES:
                    raise Unreadable(f"there are more than {_MOST_STATES} paths through it")
                seen.add(state)
                waiting.append(state)
    return frozenset(found)


def may_notify(code: bytes) -> bool:
    """Whether a filter may return SECCOMP_RET_USER_NOTIF for any call."""
    returns = [(op, k) for op, _, _, k in INSTRUCTION.iter_unpack(code) if op in (_RET_K, _RET_A)]
    return any(op == _RET_A or k & _ACTION == USER_NOTIF for op, k in returns)


def _step(state: _State, program: list[tuple[int, int, int, int]], nr: int, found: set[int]) -> list[_State]:
    """The states after one instruction. The action of a return is added to `found`."""
    if state.at >= len(program):
        raise Unreadable("it runs past its end")
    op, jt, jf, k = program[state.at]
    on = state._replace(at=state.at + 1)
    if op in (_RET_K, _RET_A):
        answer = k if op == _RET_K else state.a
        if answer is None:
            raise Unreadable("it computes its return value from the call's arguments")
        found.add(answer & _ACTION)
        return []
    if op == _JA:
        return [on._replace(at=on.at + k)]
    if op & _CLASS == _JMP:
        ways = _compare(op & _OPERATION, state.a, state.x if op & _BY_X else k)
        return [on._replace(at=on.at + (jt if way else jf)) for way in ways]
    if op & _CLASS == _ALU and op != _NEG:
        operand = state.x if op & _BY_X else k
        if op & _OPERATION == _DIV and not operand:
            found.add(KILL_THREAD)  # a division by zero ends the program with 0
            if operand == 0:
                return []
        return [on._replace(a=_compute(op & _OPERATION, state.a, operand))]
    return [_move(on, op, k, nr)]


def _move(on: _State, op: int, k: int, nr: int) -> _State:
    if op == _LD_ABS:
        return on._replace(a={_NUMBER: nr, _ARCHITECTURE: _AUDIT_ARCH_X86_64}.get(k))
    if op in (_LD_IMM, _LD_LEN):
        return on._replace(a=k if op == _LD_IMM else _DATA_SIZE)
    if op in (_LDX_IMM, _LDX_LEN):
        return on._replace(x=k if op == _LDX_IMM else _DATA_SIZE)
    if op == _LD_MEM:
        return on._replace(a=on.memory[k])
    if op == _LDX_MEM:
        return on._replace(x=on.memory[k])
    if op in (_ST, _STX):
        value = on.a if op == _ST else on.x
        return on._replace(memory=(*on.memory[:k], value, *on.memory[k + 1 :]))
    if op == _TAX:
        return on._replace(x=on.a)
    if op == _TXA:
        return on._replace(a=on.x)
    if op == _NEG:
        return on._replace(a=None if on.a is None else -on.a & _MASK)
    raise Unreadable(f"it has the instruction {op:#x}, which is not known")


def _compare(operation: int, left: Word, right: Word) -> tuple[bool, ...]:
    """The possible outcomes of a jump's condition."""
    if operation not in (_JEQ, _JGT, _JGE, _JSET):
        raise Unreadable(f"it has the jump {operation:#x}, which is not known")
    if left is None or right is None:
        return True, False
    if operation == _JEQ:
        return (left == right,)
    if operation == _JGT:
        return (left > right,)
    if operation == _JGE:
        return (left >= right,)
    return (bool(left & right),)


def _compute(operation: int, left: Word, right: Word) -> Word:
    if operation not in (_ADD, _SUB, _MUL, _DIV, _OR, _AND, _LSH, _RSH, _XOR):
        raise Unreadable(f"it has the operation {operation:#x}, which is not known")
    if left is None or right is None:
        return None
    results = {
        _ADD: left + right,
        _SUB: left - right,
        _MUL: left * right,
        _DIV: left // right if right else 0,
        _OR: left | right,
        _AND: left & right,
        _LSH: left << (right & 31),
        _RSH: left >> (right & 31),
        _XOR: left ^ right,
    }
    return results[operation] & _MASK
