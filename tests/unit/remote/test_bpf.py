"""What a seccomp filter may answer, held against what the kernel makes of it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from torpor.arch.x86_64 import NR
from torpor.remote import bpf
from torpor.remote.bpf import ALLOW, ERRNO, INSTRUCTION, KILL_PROCESS, KILL_THREAD, USER_NOTIF, Unreadable, actions
from torpor.remote.children import forked
from torpor.remote.sys import Words, syscall, try_syscall

Instruction = tuple[int, int, int, int]
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = (0x20, 0, 0, 0), (0x20, 0, 0, 4), (0x20, 0, 0, 16)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
ASKED = NR.getpriority


def equal(k: int, yes: int, no: int) -> Instruction:
    """Jump by whether A is `k`."""
    return 0x15, yes, no, k


def answer(action: int) -> Instruction:
    """Return it."""
    return 0x06, 0, 0, action


def code(program: Sequence[Instruction]) -> bytes:
    """As it is in a struct sock_fprog."""
    return b"".join(INSTRUCTION.pack(*one) for one in program)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ([answer(ALLOW)], {ALLOW}),
        ([NUMBER, equal(ASKED, 0, 1), answer(ERRNO | 5), answer(ALLOW)], {ERRNO}),
        ([NUMBER, equal(ASKED + 1, 0, 1), answer(ERRNO | 5), answer(ALLOW)], {ALLOW}),
        ([ARCHITECTURE, equal(0xC000003E, 1, 0), answer(KILL_PROCESS), answer(ALLOW)], {ALLOW}),
        ([FIRST_ARGUMENT, equal(7, 0, 1), answer(KILL_PROCESS), answer(ALLOW)], {KILL_PROCESS, ALLOW}),
        # What is computed from an argument is as unknown, also by way of X and memory.
        ([FIRST_ARGUMENT, (0x54, 0, 0, 1), (0x02, 0, 0, 3), (0x61, 0, 0, 3), NUMBER, (0x1D, 0, 1, 0), answer(ERRNO),
          answer(ALLOW)], {ERRNO, ALLOW}),
        # And forgotten with what takes its place.
        ([FIRST_ARGUMENT, NUMBER, equal(ASKED, 1, 0), answer(KILL_PROCESS), answer(ALLOW)], {ALLOW}),
        # A division by an X that may be 0 ends the program, which kills.
        ([FIRST_ARGUMENT, (0x07, 0, 0, 0), NUMBER, (0x3C, 0, 0, 0), answer(ALLOW)], {KILL_THREAD, ALLOW}),
        ([NUMBER, (0x3C, 0, 0, 0), answer(ALLOW)], {KILL_THREAD}),
        # The answer itself may be computed.
        ([(0x00, 0, 0, ERRNO), (0x44, 0, 0, 9), (0x16, 0, 0, 0)], {ERRNO}),
    ],
)  # fmt: skip
def test_answers(program: list[Instruction], expected: set[int]) -> None:
    assert actions(code(program), ASKED) == expected


@pytest.mark.parametrize("program", [[FIRST_ARGUMENT, (0x16, 0, 0, 0)], [NUMBER, (0x94, 0, 0, 3)], [NUMBER]])
def test_what_cannot_be_told_is_not_guessed(program: list[Instruction]) -> None:
    with pytest.raises(Unreadable):
        actions(code(program), ASKED)


def test_many_ways_are_followed_once() -> None:
    """Forty jumps by arguments would be 2 to the 40 ways, were what they have in common not seen."""
    fork = [FIRST_ARGUMENT, equal(1, 0, 0)]
    assert actions(code([*fork * 40, answer(ALLOW)]), ASKED) == {ALLOW}


def test_supervisors_are_seen_wherever_they_are() -> None:
    assert bpf.may_notify(code([NUMBER, equal(1, 0, 1), answer(USER_NOTIF), answer(ALLOW)]))
    assert bpf.may_notify(code([NUMBER, (0x16, 0, 0, 0)]))
    assert not bpf.may_notify(code([answer(ALLOW)]))


def computing(k: int) -> list[Instruction]:
    """Every operation on A and X."""
    by_k = [
        (0x04, k),
        (0x14, k),
        (0x24, k),
        (0x34, k or 1),
        (0x44, k),
        (0x54, k),
        (0x64, k % 32),
        (0x74, k % 32),
        (0xA4, k),
    ]
    by_x = [0x0C, 0x1C, 0x2C, 0x3C, 0x4C, 0x5C, 0x6C, 0x7C, 0xAC]
    moves = [(0x84, 0), (0x07, 0), (0x87, 0), (0x00, k), (0x01, k), (0x80, 0), (0x81, 0)]
    return [(op, 0, 0, operand) for op, operand in (*by_k, *((op, 0) for op in by_x), *moves)]


def jumping(k: int) -> list[Instruction]:
    """Every jump, over one instruction or none."""
    compared = [(op, *ways, k) for op in (0x15, 0x25, 0x35, 0x45) for ways in ((0, 1), (1, 0))]
    return [*compared, *((op, 1, 0, 0) for op in (0x1D, 0x2D, 0x3D, 0x4D)), (0x05, 0, 0, 1)]


def at_random(chance: random.Random) -> list[Instruction]:
    """A program that computes with what is known, and answers by it."""
    program: list[Instruction] = [NUMBER]
    for _ in range(chance.randint(1, 30)):
        k = chance.choice([0, 1, 3, ASKED, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32)])
        program.append(chance.choice([*computing(k), NUMBER, ARCHITECTURE, *jumping(k)]))
    # By what it comes to: only a third of all values of A passes.
    return [*program, (0x25, 0, 1, 0x55555555), answer(ERRNO | 7), answer(ALLOW)]


def asked_of_the_kernel(program: list[Instruction]) -> int:
    """The action that a child under the filter gets for ASKED; ERRNO has the number 7."""

    def ask() -> None:
        syscall(NR.prctl, PR_SET_NO_NEW_PRIVS, 1)
        syscall(NR.prctl, PR_SET_SECCOMP, FILTER, Words(len(program), code(program)))  # struct sock_fprog
        os._exit(7 if try_syscall(ASKED, 0, 0) == -7 else 8)

    status = os.waitpid(forked(ask), 0)[1]
    if os.WIFSIGNALED(status):
        return KILL_THREAD
    return {7: ERRNO, 8: ALLOW}[os.waitstatus_to_exitcode(status)]


def test_the_kernel_sees_it_alike() -> None:
    """A hundred programs. All calls but one pass, or the child could not even end."""
    chance = random.Random(7)
    outcomes = set()
    for _ in range(100):
        body = at_random(chance)
        guarded = [NUMBER, equal(ASKED, 1, 0), answer(ALLOW), *body]
        real = asked_of_the_kernel(guarded)
        assert actions(code(guarded), ASKED) == {real}, guarded
        outcomes.add(real)
    assert outcomes == {ALLOW, ERRNO, KILL_THREAD}
