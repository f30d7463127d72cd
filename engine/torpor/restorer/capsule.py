"""Start torpor-init: in a capsule (its own user, PID, mount and time namespaces), or without namespaces.

Inside a capsule an ordinary user may choose PIDs, set the exe link and mount a /proc (clone3(2), user_namespaces(7)).
There init is PID 1. Outside, init is one stable PID that lives as long as the job.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import IO, Any, Final

from torpor import procfs
from torpor._native import ffi, lib
from torpor.errors import NotPermitted, RestoreFailed, TorporError
from torpor.remote import ptrace
from torpor.remote.pid_allocation import Walk
from torpor.remote.sys import pidfd_open
from torpor.restorer import id_maps
from torpor.restorer.id_maps import Kind, Mapped
from torpor.util.inherited import Signals, soft_limits
from torpor.util.workers import RAISE_LIMIT

NO_SIGNALS: Final = Signals(frozenset(), frozenset())
INIT: Final = Path(__file__).parents[1] / "torpor-init"

TRACE_OPTIONS: Final = (
    ptrace.O_EXITKILL
    | ptrace.O_TRACESYSGOOD
    | ptrace.O_TRACECLONE
    | ptrace.O_TRACEFORK
    | ptrace.O_TRACEVFORK
    | ptrace.O_TRACEEXEC
)
"""While a tree is built, all its threads are traced from their creation, and die with the process that builds it."""

_REPORT = struct.Struct("<ii")  # struct tp_report
_GO = struct.Struct("<ii")  # struct tp_go
_PID_MAX_LIMIT = 4 << 20  # include/linux/threads.h
_UNSIGNED = (1 << 64) - 1  # RLIM_INFINITY is -1 in Python


class Namespaces(IntFlag):
    """CLONE_NEW* (include/uapi/linux/sched.h)."""

    TIME = 0x00000080
    MOUNT = 0x00020000
    IPC = 0x08000000
    USER = 0x10000000
    PID = 0x20000000


@dataclass(frozen=True)
class Setting:
    """How a job will run: in which namespaces, and how it gets its PIDs."""

    namespaces: Namespaces
    """Empty if the job gets no namespaces of its own."""
    monotonic_ns: int = 0
    """Offset of CLOCK_MONOTONIC in the time namespace."""
    boottime_ns: int = 0
    new_session: bool = False
    """Whether init calls setsid()."""
    hold_filters_off: bool = False
    """Whether to suspend the seccomp filters that are installed during the build until the tree runs."""
    pid_max: int = _PID_MAX_LIMIT
    """No process in a new PID namespace gets this PID or a higher one."""
    joined: frozenset[int] = frozenset()
    """The ids of the tree's former session and process groups that other processes still have. The tree joins those of
    init instead."""
    jump_ns: int = 0
    """By how much its monotonic clock jumps ahead, where no time namespace can be made."""
    walk: Walk | None = None
    """How the tree gets its PIDs if the user may not choose them; None if they are chosen."""

    @property
    def trace_options(self) -> int:
        """The PTRACE_O_* options for all threads of a tree while it is built."""
        return TRACE_OPTIONS | (ptrace.O_SUSPEND_SECCOMP if self.hold_filters_off else 0)

    @property
    def capsule(self) -> bool:
        """Whether the job has its own PID namespace."""
        return bool(self.namespaces & Namespaces.PID)


@dataclass(frozen=True)
class Init:
    """A started torpor-init."""

    pid: int
    """In this process's PID namespace."""
    status_fd: int
    """The read end of a pipe: init writes the wait status (an int) of its main child when that ends."""
    own_status_fd: int
    """The number of the write end in init."""


class WaitingInit:
    """A process in its namespaces that waits; `go` lets it become init.

    Until then it shares this process's descriptor table, so init inherits what is opened meanwhile.
    """

    def __init__(
        self,
        pid: int,
        status_fds: tuple[int, int],
        gate: int,
        reports: tuple[int, IO[bytes]],
        ids: Mapped | None = None,
    ) -> None:
        self.pid = pid
        """In this process's PID namespace. Paths below its /proc/PID/root are on the mounts of the job."""
        self.ids = ids
        """The uids and gids that exist in its user namespace; None if it is in this process's user namespace."""
        self.gone = False
        """Whether it has become init: then `prepare` does not kill it any more."""
        self.status_fd, self.own_status_fd = status_fds
        self._gate = gate
        self._reports, self._writer = reports

    def go(self, first: int, end: int | None = None) -> Init:
        """Let it become init; if it is traced, it stops before init's first instruction (EVENT_EXEC).

        Args:
            first: the first descriptor that it inherits besides 0, 1 and 2, whether close-on-exec or not.
            end: one more than the last inherited descriptor; None for all open ones.

        Raises:
            RestoreFailed: it failed to become init.
        """
        os.write(self._gate, _GO.pack(first, _end_of_descriptors() if end is None else end))
        self.wait_for(lib.TP_STAGE_APART)
        self._writer.close()
        if report := os.read(self._reports, _REPORT.size):  # empty after a successful execve, which closes the pipe
            raise _failure(*_REPORT.unpack(report))
        self.gone = True
        return Init(self.pid, self.status_fd, self.own_status_fd)

    def wait_for(self, stage: int) -> None:
        """Wait until it reports that it has reached a stage of its start.

        Raises:
            NotPermitted, RestoreFailed: it failed before that.
        """
        _wait_for_report(self._reports, self.pid, stage)


@contextmanager
def prepare(
    setting: Setting,
    child: int,
    *,
    base: int = 3,
    program: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    signals: Signals = NO_SIGNALS,
    hold_signals: bool = False,
    trace: bool = True,
) -> Iterator[WaitingInit]:
    """Create namespaces with a process in them that can become init. At exit it is killed if it did not become init.

    Args:
        setting: the namespaces.
        child: the PID of init's main child, to which init forwards signals and whose end it reports; 0 for none.
        base: the lowest number for its end of the status pipe.
        program: a program for init to start as its child: path, argv[0], arguments.
        environment: the environment of the program.
        signals: the signals that the program ignores and blocks.
        hold_signals: init keeps signals pending instead of passing them on, since `Job.foreground` does that.
        trace: attach to the process with ptrace, from the calling thread.

    Raises:
        NotPermitted: the host forbids a capsule.
        RestoreFailed: something else failed on the way.
    """
    with ExitStack() as stack:
        status_fd, status_writer = os.pipe2(os.O_CLOEXEC)
        unused = stack.enter_context(ExitStack())
        unused.callback(os.close, status_fd)
        try:
            own_status_fd = fcntl.fcntl(status_writer, fcntl.F_DUPFD_CLOEXEC, base)
        finally:
            os.close(status_writer)
        stack.callback(os.close, own_status_fd)
        gates, reports = (_pipe(stack) for _ in range(2))
        caller = pidfd_open(os.getpid())
        stack.callback(os.close, caller)
        argv = _strings(init_arguments(child, own_status_fd, program, hold_signals=hold_signals))
        envp = _strings([os.fsencode(f"{key}={value}") for key, value in (environment or {}).items()])
        path = ffi.new("char[]", os.fsencode(INIT))
        # A woken process sets its own limits later; until then it needs the higher ones.
        own_limits = {} if trace else soft_limits()
        limits = ffi.new("struct tp_limit[]", [(number, soft & _UNSIGNED) for number, soft in own_limits.items()])
        spawn = ffi.new(
            "struct tp_spawn *",
            {
                "namespaces": int(setting.namespaces),
                "uid": os.geteuid(),
                "gid": os.getegid(),
                "monotonic_ns": setting.monotonic_ns,
                "boottime_ns": setting.boottime_ns,
                "last_pid": int(Path("/proc/loadavg").read_text().split()[-1]),
                "pid_max": setting.pid_max,
                "ignored": _mask(signals.ignored),
                "blocked": _mask(signals.blocked),
                "limits": limits,
                "limit_count": len(limits),
                "new_session": setting.new_session,
                # Those of the new user namespace, or CAP_CHECKPOINT_RESTORE; the tree drops them all in the end.
                "keep_capabilities": trace and not procfs.is_root(),
                "gate": gates[0].fileno(),
                "caller": caller,
                "report": reports[1].fileno(),
                "path": path,
                "argv": argv[0],
                "environment": envp[0],
            },
        )
        asked = id_maps.wanted() if setting.namespaces & Namespaces.USER else {}
        ids = _run_helper(spawn, asked, gates[1].fileno(), reports[0].fileno())
        if ids is None:
            _run_helper(spawn, {}, gates[1].fileno(), reports[0].fileno())
            ids = id_maps.own("newuidmap or newgidmap has mapped wrong ids")
        by_stage = _read_reports(reports[0].fileno())
        waiting = WaitingInit(
            by_stage[lib.TP_STAGE_STARTED],
            (status_fd, own_status_fd),
            gates[1].fileno(),
            (reports[0].fileno(), reports[1]),
            ids if setting.namespaces & Namespaces.USER else None,
        )
        try:
            if trace:
                ptrace.seize(waiting.pid, setting.trace_options)
            if lib.TP_STAGE_READY not in by_stage:
                waiting.wait_for(lib.TP_STAGE_READY)
            yield waiting
        finally:
            if waiting.gone:
                unused.pop_all()
            else:
                os.kill(waiting.pid, 9)
                os.waitpid(waiting.pid, ptrace.WALL)


def launch(
    setting: Setting, program: Sequence[str], environment: Mapping[str, str], signals: Signals, *, hold_signals: bool
) -> Init:
    """Start init with a program as its main child. Both inherit 0, 1 and 2.

    Args:
        setting: the namespaces.
        program: path, argv[0], arguments.
        environment: the environment of the program.
        signals: the signals that the program ignores and blocks.
        hold_signals: init keeps signals pending instead of passing them on, since `Job.foreground` does that.

    Raises:
        As `prepare`.
    """
    with prepare(
        setting, 0, program=program, environment=environment, signals=signals, hold_signals=hold_signals, trace=False
    ) as waiting:
        return waiting.go(waiting.own_status_fd, waiting.own_status_fd + 1)


def tried_ids() -> Mapped | None:
    """Create a capsule to find out which uids and gids exist in it. Return None if no capsule can be created."""
    try:
        with prepare(Setting(Namespaces.USER | Namespaces.PID | Namespaces.MOUNT), 0, trace=False) as waiting:
            return waiting.ids
    except (OSError, TorporError):
        return None


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Make a pipe; the stack closes the ends that are still open."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    return (
        stack.enter_context(open(reader, "rb", buffering=0)),
        stack.enter_context(open(writer, "wb", buffering=0)),
    )


def _end_of_descriptors() -> int:
    return max(map(int, os.listdir("/proc/self/fd"))) + 1


def init_arguments(
    child: int, status_fd: int = 0, program: Sequence[str] = (), *, hold_signals: bool = False
) -> list[bytes]:
    """The arguments of torpor-init (native/init.c)."""
    return [b"torpor-init", b"%d" % child, b"%d" % status_fd, b"%d" % hold_signals, *map(os.fsencode, program)]


def _run_helper(spawn: Any, asked: Mapping[Kind, list[range]], gate: int, reports: int) -> Mapped | None:
    """Run the helper that starts init, and wait for its end.

    Args:
        spawn: struct tp_spawn.
        asked: ids that newuidmap(1) and newgidmap(1) must map into its user namespace.
        gate, reports: this process's ends of the pipes.

    Returns:
        The uids and gids that exist in its user namespace; None if they were mapped wrongly: then the helper is killed.

    Raises:
        NotPermitted, RestoreFailed: it failed on the way.
    """
    spawn.others_map = bool(asked)
    helper = lib.tp_spawn(spawn)
    if helper < 0:
        raise _failure(lib.TP_STAGE_FORK, -helper)
    ids: Mapped | None = id_maps.own()
    try:
        if asked:
            _wait_for_report(reports, helper, lib.TP_STAGE_UNMAPPED)
            ids = id_maps.write(helper, asked)
            if ids is None:
                os.kill(helper, signal.SIGKILL)
            else:
                os.write(gate, _GO.pack(0, 0))
    except BaseException:
        os.kill(helper, signal.SIGKILL)
        raise
    finally:
        os.waitpid(helper, 0)
    return ids


def _wait_for_report(reports: int, pid: int, stage: int) -> None:
    """Wait until a process reports that it has reached a stage.

    Raises:
        NotPermitted, RestoreFailed: it failed on the way.
    """
    pidfd = pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(reports, select.POLLIN)
        waiting.register(pidfd, select.POLLIN)
        ready = dict(waiting.poll())
    finally:
        os.close(pidfd)
    if reports not in ready:
        raise RestoreFailed("torpor-init was killed while it started", advice="see the kernel's log: `dmesg`")
    report = _REPORT.unpack(os.read(reports, _REPORT.size))
    if report[0] != stage:
        raise _failure(*report)


def _read_reports(reports: int) -> dict[int, int]:
    """Read all reports from the pipe once the helper has ended; return the values by stage.

    Raises:
        NotPermitted, RestoreFailed: no process was started.
    """
    os.set_blocking(reports, False)
    try:
        text = os.read(reports, 64 * _REPORT.size)
    except BlockingIOError:
        raise RestoreFailed("the helper that starts init was killed", advice="see the kernel's log: `dmesg`") from None
    finally:
        os.set_blocking(reports, True)
    by_stage = dict(_REPORT.iter_unpack(text))
    failed = [report for report in by_stage.items() if report[0] not in (lib.TP_STAGE_STARTED, lib.TP_STAGE_READY)]
    if failed:
        if pid := by_stage.get(lib.TP_STAGE_STARTED):
            os.waitpid(pid, 0)
        raise _failure(*failed[0])
    return by_stage


_MAKING_CAPSULE = {
    lib.TP_STAGE_UNSHARE: "making namespaces",
    lib.TP_STAGE_ID_MAPS: "mapping your user id into a user namespace",
    lib.TP_STAGE_CLOCKS: "setting the clocks of a time namespace",
    lib.TP_STAGE_SLAVE_MOUNTS: "separating the mounts from the host's",
    lib.TP_STAGE_MOUNT_PROC: "mounting a /proc",
}
_STARTING_INIT = {
    lib.TP_STAGE_FORK: "creating its process",
    lib.TP_STAGE_SUBREAPER: "becoming a child subreaper",
    lib.TP_STAGE_SESSION: "starting a session",
    lib.TP_STAGE_CAPABILITIES: "keeping capabilities",
    lib.TP_STAGE_LIMITS: "setting its limits",
    lib.TP_STAGE_DESCRIPTORS: "passing descriptors to it",
    lib.TP_STAGE_EXECVE: f"executing {INIT}",
}


def _failure(stage: int, error: int) -> TorporError:
    if stage in _MAKING_CAPSULE:
        words = f"a capsule cannot be made: {_MAKING_CAPSULE[stage]}: {os.strerror(error)}"
    else:
        words = f"torpor-init cannot be started: {_STARTING_INIT[stage]}: {os.strerror(error)}"
    if error == errno.EAGAIN:
        return RestoreFailed(words, advice=RAISE_LIMIT)
    if error in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        return NotPermitted(words, advice="`torpor doctor` says what this host forbids, and who can allow it")
    return RestoreFailed(words, advice="`torpor doctor` says what this host can do")


def _mask(signals: Iterable[int]) -> int:
    return sum(1 << (number - 1) for number in signals)


def _strings(texts: Sequence[bytes]) -> tuple[Any, list[Any]]:
    """Make a ``char *[]`` that ends with NULL; return it with the objects that must be kept alive with it."""
    kept = [ffi.new("char[]", text) for text in texts]
    return ffi.new("char *[]", [*kept, ffi.NULL]), kept
