"""What is waited for by descriptor: timers, signals, processes and files, alone and through epoll."""

import asyncio
import ctypes
import fcntl
import os
import select
import signal
import struct
import time
from pathlib import Path

from ready import HERE, expect, judge, ready_and_wait, same

LIBC = ctypes.CDLL(None, use_errno=True)
KCMP, KCMP_FILE = 312, 0
ABSOLUTE, CANCEL_ON_SET = 1, 2
NEVER = 1 << 34
"""Seconds: beyond the end of the kernel's time. Timers that wait for changes of the wall clock alone are set so."""


def timer(clock: int, value: float, interval: float = 0, flags: int = 0) -> int:
    fd = LIBC.timerfd_create(clock, os.O_NONBLOCK)
    parts = [part for seconds in (interval, value) for part in divmod(int(seconds * 1e9), 10**9)]
    same(LIBC.timerfd_settime(fd, flags, struct.pack("=qqqq", *parts), None), 0, "setting a timer")
    return fd


def left(fd: int) -> tuple[float, float]:
    """The time left and the interval."""
    buffer = ctypes.create_string_buffer(32)
    LIBC.timerfd_gettime(fd, buffer)
    seconds = struct.unpack("=qqqq", buffer.raw)
    return seconds[2] + seconds[3] / 1e9, seconds[0] + seconds[1] / 1e9


def flags(fd: int) -> str:
    """What it was set with."""
    return next(line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if "settime" in line)


def expirations(fd: int) -> int:
    try:
        return int.from_bytes(os.read(fd, 8), "little")
    except BlockingIOError:
        return 0


def main() -> None:
    begun = time.monotonic()
    at = time.time() + 1000
    once, wall = timer(time.CLOCK_MONOTONIC, 1000), timer(time.CLOCK_REALTIME, at, flags=ABSOLUTE)
    changes = timer(time.CLOCK_REALTIME, NEVER, flags=ABSOLUTE | CANCEL_ON_SET)
    began = timer(time.CLOCK_REALTIME, 1, flags=ABSOLUTE | CANCEL_ON_SET)
    over = timer(time.CLOCK_REALTIME, 1, flags=ABSOLUTE | CANCEL_ON_SET)
    select.select([began], [], [])
    select.select([over], [], [])
    same(expirations(over), 1, "a timer whose moment has passed")
    off = timer(time.CLOCK_REALTIME, 0, flags=ABSOLUTE | CANCEL_ON_SET)
    monotonic = timer(time.CLOCK_MONOTONIC, begun + 1000, flags=ABSOLUTE)
    set_so = (changes, began, over, off, monotonic)
    as_set = [flags(fd) for fd in set_so]
    again = timer(time.CLOCK_BOOTTIME, 0.001, 0.001)
    expired = timer(time.CLOCK_MONOTONIC, 1e-9)
    select.select([again, expired], [], [])
    idle = timer(time.CLOCK_MONOTONIC, 0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
    mask = struct.pack("=Q", 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGHUP - 1)
    signals = LIBC.signalfd(-1, ctypes.create_string_buffer(mask, 128), os.O_NONBLOCK)
    os.kill(os.getpid(), signal.SIGHUP)

    child = os.fork()
    if child == 0:
        time.sleep(1000)
        os._exit(0)
    ended = os.fork()
    if ended == 0:
        os._exit(6)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    itself, other, gone = os.pidfd_open(os.getpid()), os.pidfd_open(child), os.pidfd_open(ended)
    reaped = os.fork()
    if reaped == 0:
        os._exit(0)
    nobody = os.pidfd_open(reaped, os.O_NONBLOCK)
    os.waitpid(reaped, 0)
    high = os.dup2(other, 90)
    os.close(other)
    other = high
    fcntl.fcntl(itself, fcntl.F_SETFL, os.O_APPEND)
    once_more = os.dup(itself)
    shared = os.fork()  # who has them all, too
    if shared == 0:
        signal.pause()
    kept = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (itself, other, gone, nobody)}

    (HERE / "watched").mkdir()
    (HERE / "watched" / "file").write_text("")
    notes = LIBC.inotify_init1(os.O_NONBLOCK)
    passing = LIBC.inotify_add_watch(notes, bytes(HERE), 0x100)
    directory = LIBC.inotify_add_watch(notes, bytes(HERE / "watched"), 0x100)
    file = LIBC.inotify_add_watch(notes, bytes(HERE / "watched" / "file"), 0x2)
    LIBC.inotify_rm_watch(notes, passing)
    os.read(notes, 1000)

    epoll = select.epoll()
    for fd in (once, signals, other, notes):
        epoll.register(fd, select.EPOLLIN)
    same([fd for fd, _ in epoll.poll(0)], [signals], "what is ready at first")
    ready_and_wait()

    rests = [left(fd)[0] for fd in (once, monotonic)]
    passed = time.monotonic() - begun + 1
    expect(all(1000 - passed < rest <= 1000 for rest in rests), f"timers have {rests} left after {passed} s")
    early, rest, late = at - time.time(), left(wall)[0], at - time.time()
    expect(late - 0.1 < rest < early + 0.1, f"a moment is {rest} off, not {early}")
    same([flags(fd) for fd in set_so], as_set, "how timers were set")
    expect(left(changes)[0] > 1 << 31, f"one that never ends has {left(changes)} left")
    same((left(began)[0], left(over)[0], left(off)[0]), (0, 0, 0), "what is left of those that are over or off")
    same((expirations(began), expirations(over), expirations(off)), (1, 0, 0), "what they tell")
    same(left(again)[1], 0.001, "an interval")
    expect(expirations(again) > 1, "an interval that stands still")
    select.select([again], [], [])
    same((expirations(expired), expirations(expired)), (1, 0), "a timer that had expired")
    same((left(idle), expirations(idle)), ((0, 0), 0), "a timer that is not set")

    os.kill(os.getpid(), signal.SIGUSR1)
    same(sorted(os.read(signals, 128)[0] for _ in range(2)), [signal.SIGHUP, signal.SIGUSR1], "signals")
    epoll.poll(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    same([fd for fd, _ in epoll.poll(100)], [signals], "what is ready after a signal")
    os.read(signals, 128)

    same({fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in kept}, kept, "the flags of pidfds")
    for fd in kept:
        same(LIBC.syscall(KCMP, os.getpid(), shared, KCMP_FILE, fd, fd), 0, f"whether a child shares pidfd {fd}")
    same(LIBC.syscall(KCMP, os.getpid(), shared, KCMP_FILE, itself, once_more), 0, "whether a copy shares it")
    os.kill(shared, signal.SIGKILL)
    os.waitpid(shared, 0)
    signal.pidfd_send_signal(itself, signal.SIGHUP)
    same(os.read(signals, 128)[0], signal.SIGHUP, "a signal to itself by pidfd")
    same(select.select([gone, other], [], [], 0)[0], [gone], "processes that have ended")
    same(os.waitid(os.P_PIDFD, gone, os.WEXITED).si_status, 6, "the exit status by pidfd")
    same(select.select([nobody], [], [], 0)[0], [nobody], "a process that was waited for")
    same(os.get_blocking(nobody), False, "whether it blocks")
    try:
        signal.pidfd_send_signal(nobody, 0)
        expect(False, "a process that was waited for gets signals")
    except ProcessLookupError:
        pass
    signal.pidfd_send_signal(other, signal.SIGTERM)
    same([fd for fd, _ in epoll.poll(100)], [other], "what is ready after the child's end")
    same(os.waitid(os.P_PIDFD, other, os.WEXITED).si_status, signal.SIGTERM, "the end of the child")
    epoll.unregister(other)

    (HERE / "watched" / "new").write_text("")
    with open(HERE / "watched" / "file", "w") as written:
        written.write("x")
    same([fd for fd, _ in epoll.poll(100)], [notes], "what is ready after a change")
    events, at = os.read(notes, 1000), 0
    told = []
    while at < len(events):
        number, kind, _, size = struct.unpack_from("=iIII", events, at)
        told.append((number, kind))
        at += 16 + size
    same(set(told), {(directory, 0x100), (file, 0x2)}, "what changed")

    async def run() -> int:
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait()

    same(asyncio.run(run()), 0, "a process of asyncio's")


judge(main)
