"""Starting torpor-init: in a capsule (user, PID, mount and time namespaces of its own) or as a plain keeper.

Inside a capsule an ordinary user may choose PIDs, set the exe link and mount a /proc (clone3(2), user_namespaces(7)).
init is its pid 1; outside it is one stable PID that lives as long as the job.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any, Final

from torpor._native import ffi, lib
from torpor.errors import NotPermitted, RestoreFailed, TorporError
from torpor.remote import ptrace

INIT: Final = Path(__file__).with_name("torpor-init")

TRACE_OPTIONS: Final = (
    ptrace.O_EXITKILL
    | ptrace.O_TRACESYSGOOD
    | ptrace.O_TRACECLONE
    | ptrace.O_TRACEFORK
    | ptrace.O_TRACEVFORK
    | ptrace.O_TRACEEXEC
)
"""While it is built, all of a tree is traced from birth, and dies with the one who builds it."""

_REPORT = struct.Struct("<ii")  # struct tp_report


class Namespaces(IntFlag):
    """CLONE_NEW* (include/uapi/linux/sched.h)."""

    TIME = 0x00000080
    MOUNT = 0x00020000
    IPC = 0x08000000
    USER = 0x10000000
    PID = 0x20000000


@dataclass(frozen=True)
class Setting:
    """Where a job is to live."""

    namespaces: Namespaces
    """None at all: among the host's processes."""
    monotonic_ns: int = 0
    """What CLOCK_MONOTONIC is ahead by, in a time namespace."""
    boottime_ns: int = 0
    new_session: bool = False
    """init is to lead a session of its own."""
    hold_filters_off: bool = False
    """Seccomp filters that are installed on the way are to have no effect before the tree is let go."""

    @property
    def capsule(self) -> bool:
        """Whether PIDs are chosen in a namespace of its own."""
        return bool(self.namespaces & Namespaces.PID)


@dataclass(frozen=True)
class Init:
    """A started torpor-init."""

    pid: int
    """As this process sees it."""
    status_fd: int
    """Readable: the wait status (an int) of the child that init stands for, when that has ended."""
    own_status_fd: int
    """The number that init knows the other end by."""


def launch(
    setting: Setting,
    child: int,
    *,
    base: int = 3,
    program: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    trace: bool = True,
) -> Init:
    """Start init; with `trace` it is seized and stops before its first instruction (EVENT_EXEC comes).

    Args:
        setting: its namespaces.
        child: the PID of the child it is to stand for, 0 for none.
        base: the lowest number for its end of the status pipe. It inherits every descriptor from there on,
            close-on-exec or not, besides 0, 1 and 2.
        program: what it is to start as its child: path, argv[0], arguments.
        environment: for the program.
        trace: attach to it, from the calling thread.

    Raises:
        NotPermitted: the host forbids a capsule.
        RestoreFailed: something else failed on the way.
    """
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    try:
        status_fd = fcntl.fcntl(status_write, fcntl.F_DUPFD_CLOEXEC, base)
    finally:
        os.close(status_write)
    try:
        arguments = init_arguments(child, status_fd, program)
        inherit = range(base, _end_of_descriptors()) if trace else range(status_fd, status_fd + 1)
        pid = _launch(setting, inherit, arguments, environment or {}, trace=trace)
    except BaseException:
        os.close(status_read)
        raise
    finally:
        os.close(status_fd)
    return Init(pid, status_read, status_fd)


def _end_of_descriptors() -> int:
    return max(map(int, os.listdir("/proc/self/fd"))) + 1


def init_arguments(child: int, status_fd: int = 0, program: Sequence[str] = ()) -> list[bytes]:
    """The arguments of torpor-init (native/init.c)."""
    return [b"torpor-init", b"%d" % child, b"%d" % status_fd, *map(os.fsencode, program)]


def _launch(
    setting: Setting, inherit: range, arguments: Sequence[bytes], environment: Mapping[str, str], *, trace: bool
) -> int:
    gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            argv = _strings(arguments)
            envp = _strings([os.fsencode(f"{key}={value}") for key, value in environment.items()])
            path = ffi.new("char[]", os.fsencode(INIT))
            spawn = ffi.new(
                "struct tp_spawn *",
                {
                    "namespaces": int(setting.namespaces),
                    "uid": os.geteuid(),
                    "gid": os.getegid(),
                    "monotonic_ns": setting.monotonic_ns,
                    "boottime_ns": setting.boottime_ns,
                    "new_session": setting.new_session,
                    "keep_capabilities": trace and bool(setting.namespaces & Namespaces.USER),
                    "first_fd": inherit.start,
                    "end_fd": inherit.stop,
                    "gate": gate_read,
                    "gate_writer": gate_write,
                    "report": report_write,
                    "path": path,
                    "argv": argv[0],
                    "environment": envp[0],
                },
            )
            helper = lib.tp_spawn(spawn)
        finally:
            os.close(gate_read)
            os.close(report_write)
        if helper < 0:
            raise OSError(-helper, os.strerror(-helper))
        try:
            pid = _told_pid(report_read)
        finally:
            os.waitpid(helper, 0)
        try:
            if trace:
                held_off = ptrace.O_SUSPEND_SECCOMP if setting.hold_filters_off else 0
                ptrace.seize(pid, TRACE_OPTIONS | held_off)
            os.write(gate_write, b"\0")
            if report := os.read(report_read, _REPORT.size):  # nothing: execve has closed it
                raise _failure(*_REPORT.unpack(report))
        except BaseException:
            os.kill(pid, 9)
            os.waitpid(pid, ptrace.WALL)
            raise
        return pid
    finally:
        os.close(gate_write)
        os.close(report_read)


def _told_pid(report_fd: int) -> int:
    report = os.read(report_fd, _REPORT.size)
    if not report:
        raise RestoreFailed("the helper that starts init was killed", advice="see the kernel's log: `dmesg`")
    stage, value = _REPORT.unpack(report)
    if stage != lib.TP_STAGE_STARTED:
        raise _failure(stage, value)
    return int(value)


_DOING = {
    lib.TP_STAGE_UNSHARE: "making namespaces",
    lib.TP_STAGE_ID_MAPS: "mapping the own user into a user namespace",
    lib.TP_STAGE_CLOCKS: "setting the clocks of a time namespace",
    lib.TP_STAGE_FORK: "starting pid 1",
    lib.TP_STAGE_PRIVATE_MOUNTS: "making the mounts private",
    lib.TP_STAGE_MOUNT_PROC: "mounting a /proc",
    lib.TP_STAGE_SUBREAPER: "becoming the one whom orphans fall to",
    lib.TP_STAGE_SESSION: "starting a session",
    lib.TP_STAGE_CAPABILITIES: "keeping capabilities",
    lib.TP_STAGE_DESCRIPTORS: "handing descriptors on",
    lib.TP_STAGE_EXECVE: f"executing {INIT}",
}


def _failure(stage: int, error: int) -> TorporError:
    words = f"a capsule cannot be made: {_DOING[stage]}: {os.strerror(error)}"
    if error in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        return NotPermitted(words, advice="`torpor doctor` says what this host forbids, and who can allow it")
    return RestoreFailed(words, advice="`torpor doctor` says what this host can do")


def _strings(texts: Sequence[bytes]) -> tuple[Any, list[Any]]:
    """A ``char *[]`` that ends with NULL, and what must be kept alive with it."""
    kept = [ffi.new("char[]", text) for text in texts]
    return ffi.new("char *[]", [*kept, ffi.NULL]), kept
