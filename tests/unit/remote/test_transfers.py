"""Real threads that are stopped in the middle of a read, write, send or receive."""

from __future__ import annotations

import os
import select
import struct
import threading
from array import array
from collections.abc import Iterator

import pytest

from tests.conformance.harness import wait_until
from tests.unit.remote.targets import Start, start, tell
from torpor import procfs
from torpor.arch.x86_64 import ORIG_RAX, RAX, RDX, RIP, RSI, RSP
from torpor.arch.x86_64.transfers import CODE
from torpor.remote import memory, ptrace, transfers
from torpor.remote.code_stubs import STUBS
from torpor.remote.freeze import Frozen

__all__ = ["start"]

SINGLESTEP = 9
LARGE = 1 << 20
WAITS = """
import os, socket, struct, sys, threading
def told(what):
    print("ready", flush=True)
    sys.stdin.readline()
    print(what(), flush=True)
"""
WRITES = (
    WAITS
    + """
here, there = {make}
result = []
thread = threading.Thread(target=lambda: result.append({call}))
thread.start()
def drain():
    got = 0
    while got < {size} and thread.is_alive():
        got += len({take})
    thread.join()
    return result[0]
told(drain)
"""
)
PIPE = "reversed(os.pipe())"
SOCKETS = "socket.socketpair()"
WITH_LIMIT = "here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('=qq', 1000, 0))"
WRITE, SEND = f"os.write(here, bytes({LARGE}))", f"here.send(bytes({LARGE}))"
RECEIVE = "[there.send(b'12345'), here.recv(12, socket.MSG_WAITALL)][1]"


def writer(
    start: Start, make: str, call: str, take: str = "os.read(there, 65536)", size: int = LARGE, times: int = 2
) -> int:
    """What a call returns that was stopped, twice or as often, after it had moved a part of its bytes."""
    target = start(WRITES.format(make=make, call=call, take=take, size=size))
    thread = procfs.threads(target.pid)[1]
    for _ in range(times):
        wait_until(lambda: procfs.parse_stat(procfs.read(f"/proc/{thread}/stat")).state == "S", "the call to wait")
        with Frozen(target.pid, 5):
            pass
    return int(tell(target))


def test_a_write_to_a_pipe_and_a_send_move_all(start: Start) -> None:
    assert writer(start, PIPE, WRITE) == LARGE
    assert writer(start, SOCKETS, SEND, "there.recv(65536)") == LARGE


def test_a_receive_moves_what_was_asked_for(start: Start) -> None:
    assert writer(start, SOCKETS, f"len({RECEIVE})", "b'1234567'[: there.send(b'1234567')]", 7) == 12


def test_a_send_with_a_time_limit_may_be_short(start: Start) -> None:
    call = f"[{WITH_LIMIT}, {SEND}][1]"
    assert 0 < writer(start, SOCKETS, call, "there.recv(65536)", times=1) < LARGE


def test_random_bytes_and_zeros(start: Start) -> None:
    """A call of some tenths of a second, which ends early if a signal is pending (drivers/char/mem.c, random.c)."""
    size = 64 << 20
    code = f"""
stop = threading.Event()
counts = set()
def read():
    here = os.open("/dev/zero", os.O_RDONLY)
    while not stop.is_set():
        counts.add(len(os.read(here, {size})))
thread = threading.Thread(target=read)
thread.start()
def end():
    stop.set()
    thread.join()
    return counts == {{{size}}}
told(end)
"""
    target = start(WAITS + code)
    for _ in range(50):
        with Frozen(target.pid, 5):
            pass
    assert tell(target) == "True"


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A master whose output nobody reads, and the name of its terminal."""
    master, slave = os.openpty()
    yield master, os.ttyname(slave)
    os.close(master)
    os.close(slave)


def test_a_write_to_a_terminal_outside(start: Start, terminal: tuple[int, str]) -> None:
    master, name = terminal
    size = 200_000
    target = start(
        WAITS
        + f"""
result = []
here = os.open({name!r}, os.O_RDWR | os.O_NOCTTY)
thread = threading.Thread(target=lambda: result.append(os.write(here, b"x" * {size})))
thread.start()
told(lambda: [thread.join(), result[0]][1])
"""
    )
    thread = procfs.threads(target.pid)[1]
    wait_until(lambda: procfs.parse_stat(procfs.read(f"/proc/{thread}/stat")).state == "S", "the write to wait")
    with Frozen(target.pid, 5):
        pass
    done = threading.Event()

    def drain() -> None:
        while not done.is_set():
            if select.select([master], [], [], 0.01)[0]:
                os.read(master, 65536)

    drained = threading.Thread(target=drain)
    drained.start()
    try:
        assert int(tell(target)) == size
    finally:
        done.set()
        drained.join()


def test_each_instruction_of_the_code_is_understood(start: Start) -> None:
    """A thread may be stopped at any of them: what it does is always known as that of the program's own code."""
    here, there = os.pipe()
    opened = f"os.open('/proc/{os.getpid()}/fd/{there}', os.O_WRONLY)"
    target = start(WAITS + f"told(lambda: os.write({opened}, bytes({LARGE})))")
    assert target.stdin is not None and target.stdout is not None
    target.stdin.write("\n")
    target.stdin.flush()
    pid = target.pid
    wait_until(lambda: bool(select.select([here], [], [], 0)[0]), "the write to begin")
    wait_until(lambda: procfs.parse_stat(procfs.read(f"/proc/{pid}/stat")).state == "S", "the write to wait")
    with Frozen(pid, 5) as frozen:
        registers = frozen.processes[pid].threads[pid].registers
        transfer = transfers.taken_back(pid, registers)
        assert 0 < transfer.moved < LARGE
        back = transfer.registers[RIP]
        drained = threading.Thread(target=lambda: read(here, LARGE))
        drained.start()
        seen = []
        while registers[RIP] != back:
            ptrace.resume(pid, SINGLESTEP)
            ptrace.wait_surely(pid)
            registers = ptrace.get_registers(pid)
            seen.append(transfers.taken_back(pid, registers))
        drained.join()
        frozen.processes[pid].threads[pid].registers = registers
    assert len(seen) == 8, "one of its instructions is passed over"
    for one in seen:
        assert not one.moved
        for register in (RAX, RSI, RDX, RSP, RIP):
            assert one.registers[register] == registers[register]
    assert (registers[RAX], registers[RDX]) == (LARGE, LARGE)
    assert target.stdout.readline() == f"{LARGE}\n"
    os.close(here)
    os.close(there)


def read(here: int, size: int) -> None:
    while size:
        size -= len(os.read(here, size))


def test_a_vdso_with_the_code_or_a_part_of_it_is_as_the_kernel_made_it(start: Start) -> None:
    target = start(WAITS + "told(lambda: 1)")
    (code,) = (one for one in procfs.mappings(target.pid) if one.name == b"[vdso]")
    plain = memory.read(target.pid, code.start, code.end - code.start)
    at = len(plain) - len(STUBS) - len(CODE)
    whole = plain[:at] + CODE + plain[at + len(CODE) :]
    part = plain[: at + 8] + CODE[8:16] + plain[at + 16 :]
    other = plain[:at] + bytes(8) + struct.pack("<Q", 1) + plain[at + 16 :]
    assert transfers.without_code(whole) == transfers.without_code(part) == plain
    assert transfers.without_code(other) == other


def test_where_nothing_has_the_code_registers_are_the_programs_own(start: Start) -> None:
    target = start(WAITS + "told(lambda: 1)")
    registers = array("Q", bytes(8 * 27))
    registers[RIP], registers[ORIG_RAX] = 0xFD1, 1
    assert transfers.taken_back(target.pid, registers).registers == registers
