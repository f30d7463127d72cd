"""Find out what this host can do for this user: by trying, never by comparing versions.

Everything is tried once per process, mostly in forked children, since a seccomp filter may kill the process that tries,
or since the trial changes namespaces. The kernel versions below say when the mainline kernel got a feature;
distributions differ, so no code uses them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import resource
import signal
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torpor import procfs
from torpor.remote.sys import Words, pidfd_open, syscall, try_syscall

# System call numbers of x86-64, the only processor supported so far.
_MPROTECT, _BRK, _PTRACE, _PRCTL, _ARCH_PRCTL, _MOUNT, _UNSHARE = 10, 12, 101, 157, 158, 165, 272
_PROCESS_VM_READV, _PROCESS_VM_WRITEV = 310, 311
_KCMP, _USERFAULTFD, _PIDFD_GETFD, _CLONE3 = 312, 323, 438, 435

_CLONE_NEWTIME, _CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x80, 0x20000, 0x10000000, 0x20000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_AT_SYSINFO_EHDR = 33

CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_CHECKPOINT_RESTORE": 40,
}
"""The capabilities that let Torpor do more, with their numbers (linux/capability.h)."""


_TO_FREEZE = ("trace_descendants", "kcmp", "pidfd_getfd", "process_vm", "rseq_configuration", "proc_children")
_TO_WAKE = ("user_namespaces", "pid_namespaces", "mount_proc", "set_tid", "set_mm_map", "map_vdso")
"""In the order in which a capsule is made: where one fails, those after it were not tried."""


@dataclass(frozen=True)
class Probe:
    """What this host can do for this user. All fields are plain values, so that tests can invent hosts."""

    # Who asks
    uid: int = 0
    """The effective user id."""
    capabilities: frozenset[str] = frozenset()
    """The effective capabilities of this process among CAPABILITIES."""
    groups: tuple[int, ...] = ()
    """The user's supplementary groups. In a capsule files cannot be given to them, unless /etc/subgid grants them."""
    nofile: tuple[int, int] = (0, 0)
    """RLIMIT_NOFILE, soft and hard. All descriptors of a tree are open at once while it is saved or woken."""

    # Tracing, for checkpoints
    trace_descendants: bool = False
    """A process may trace its descendants (Yama allows that up to ptrace_scope 1)."""
    trace_siblings: bool = False
    """A process may trace any other of the same user (needs ptrace_scope 0, or CAP_SYS_PTRACE)."""
    yama_scope: int | None = None
    """kernel.yama.ptrace_scope; None if this kernel has no Yama."""
    read_filters: bool = False
    """A tracer can read the seccomp filters of others, and suspend them (PTRACE_O_SUSPEND_SECCOMP, 4.3,
    CONFIG_CHECKPOINT_RESTORE). That needs CAP_SYS_ADMIN in the initial user namespace, and no filter on the tracer."""
    rseq_configuration: bool = False
    """PTRACE_GET_RSEQ_CONFIGURATION (5.13): shows where a thread has registered its rseq area."""
    kcmp: bool = False
    """kcmp(2) (3.5): shows which descriptors share one open file description."""
    pidfd_getfd: bool = False
    """pidfd_getfd(2) (5.6): copies a descriptor of another process."""
    process_vm: bool = False
    """process_vm_readv(2) and process_vm_writev(2) (3.2): copy the memory of another process."""
    proc_children: bool = False
    """/proc/PID/task/TID/children (CONFIG_PROC_CHILDREN): lists the tree without a search through all of /proc."""
    pagemap_scan: bool = False
    """The ioctl PAGEMAP_SCAN (6.7): finds pages that are present, zero, or written."""
    uffd_wp_async: bool = False
    """userfaultfd with WP_ASYNC and WP_UNPOPULATED (6.7), for user-mode faults only: tracks written pages."""

    # Namespaces, for restores without root
    user_namespaces: bool = False
    """This user can create a user namespace and map the own id in it."""
    pid_namespaces: bool = False
    """A PID and a mount namespace can be created in that user namespace."""
    mount_proc: bool = False
    """A /proc of the new PID namespace can be mounted there (containers with a masked /proc forbid it)."""
    set_tid: bool = False
    """clone3(2) accepts a chosen PID there (set_tid, 5.5)."""
    set_mm_map: bool = False
    """prctl(PR_SET_MM_MAP) (3.18, CONFIG_CHECKPOINT_RESTORE) sets the memory layout and exe link there."""
    time_namespaces: bool = False
    """A time namespace can be created there (5.6), so that clocks continue from where they stopped."""
    can_choose_pids: bool = False
    """clone3(2) accepts a chosen PID in this PID namespace, so that a tree can be woken natively if its PIDs are free.
    That needs root, or CAP_CHECKPOINT_RESTORE (5.9), in the user namespace that owns the PID namespace."""
    apparmor_restricts_userns: bool | None = None
    """kernel.apparmor_restrict_unprivileged_userns, as on Ubuntu 24.04; None if it does not exist."""
    userns_limit: int | None = None
    """user.max_user_namespaces; None if it cannot be read."""
    unprivileged_userns_clone: bool | None = None
    """kernel.unprivileged_userns_clone, a switch of Debian's older kernels; None if it does not exist."""

    # Building a process
    map_vdso: bool = False
    """arch_prctl(ARCH_MAP_VDSO_64) (4.9, CONFIG_CHECKPOINT_RESTORE) maps the vDSO at a chosen address."""
    sealed_mappings: bool = False
    """System mappings are sealed (6.15, CONFIG_MSEAL_SYSTEM_MAPPINGS), so the vDSO cannot be moved."""
    timer_restore_ids: bool = False
    """prctl(PR_TIMER_CREATE_RESTORE_IDS) (6.16): timer_create(2) accepts the old id, without counting up to it."""
    shadow_stacks: bool = False
    """The kernel and the processor support user shadow stacks (6.6)."""

    # Containers
    seccomp: int = 0
    """The seccomp mode of this process: 0 none, 1 strict, 2 filter, as container runtimes set it."""
    masked_proc: tuple[str, ...] = ()
    """Mount points that hide parts of /proc."""

    # The machine
    architecture: str = ""
    """The machine field of uname(2)."""
    kernel_release: str = ""
    """Shown to users only."""
    page_size: int = 4096
    """Bytes."""
    transparent_hugepages: str = ""
    """always, madvise or never; empty if this kernel has none."""
    cpu_flags: frozenset[str] = frozenset()
    """The processor's features as /proc/cpuinfo names them."""
    xfeatures: int = 0
    """XCR0: the state components that a thread's xsave area may contain here."""
    xsave_size: int = 0
    """The size of a thread's xsave area here, bytes."""

    why: dict[str, str] = field(default_factory=dict, compare=False)
    """For fields that are False: what failed, and the kernel's error."""

    @property
    def can_checkpoint(self) -> bool:
        """Whether at least descendants of this process can be frozen and saved."""
        return not self.cannot_freeze

    @property
    def cannot_freeze(self) -> str:
        """Why no process at all can be frozen and saved; empty if descendants of this process can."""
        missing = [name for name in _TO_FREEZE if not getattr(self, name)]
        # What has no reason was not tried, since something before it has failed.
        return "; ".join(self.why[name] for name in missing if name in self.why) or ", ".join(missing)

    @property
    def cannot_wake(self) -> str:
        """Why nothing can be woken in a capsule: the first step of making one that fails. Empty if it can."""
        missing = next((name for name in _TO_WAKE if not getattr(self, name)), "")
        return self.why.get(missing, missing)

    @property
    def can_restore_rootless(self) -> bool:
        """Whether a tree can be woken in a capsule, with its old PIDs and without any privilege."""
        return not self.cannot_wake and not self.sealed_mappings

    @property
    def can_walk(self) -> bool:
        """Whether a tree can be woken natively without the right to choose PIDs, by waiting for them.

        Its links /proc/PID/exe take a user namespace, but no /proc of its own, which a masked one forbids.
        """
        return self.user_namespaces and self.set_mm_map and self.map_vdso and not self.sealed_mappings

    @property
    def can_wake(self) -> bool:
        """Whether an ordinary user can wake a tree at all."""
        return self.can_restore_rootless or self.can_walk


@cache
def probe() -> Probe:
    """Probe this host for this user; done once per process."""
    why: dict[str, str] = {}
    status = _status()
    effective = int(status["CapEff"], 16)
    facts: dict[str, Any] = {
        "uid": os.geteuid(),
        "capabilities": frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1),
        "groups": tuple(sorted(set(os.getgroups()) - {os.getegid()})),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "yama_scope": _number("/proc/sys/kernel/yama/ptrace_scope"),
        "proc_children": os.path.exists(f"/proc/self/task/{os.getpid()}/children"),
        "apparmor_restricts_userns": _switch("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        "userns_limit": _number("/proc/sys/user/max_user_namespaces"),
        "unprivileged_userns_clone": _switch("/proc/sys/kernel/unprivileged_userns_clone"),
        "seccomp": int(status.get("Seccomp", 0)),
        "masked_proc": _masked_proc(),
        "architecture": platform.machine(),
        "kernel_release": platform.release(),
        "page_size": resource.getpagesize(),
        "transparent_hugepages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "cpu_flags": _cpu_flags(),
    }
    # A child may be killed for what it tries; then everything that it has not reported counts as impossible.
    for trial in (_try_calls, _try_tracing, _try_namespaces):
        facts |= _in_child(trial, why)
    return Probe(**facts, why=why)


class _Report:
    """Reports what a trial in a child finds, line by line, so that the lines before a kill are not lost."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, name: str, value: object, why: str = "") -> None:
        os.write(self._fd, json.dumps([name, value, why]).encode() + b"\n")

    def attempt(self, name: str, call: Callable[[], object], what: str = "") -> bool:
        """Report `name` as possible unless `call` raises OSError; then report `what` with the kernel's error.

        Without `what`: the system call that failed.
        """
        try:
            call()
        except OSError as error:
            self.tell(name, False, f"{what or error.filename}: {error.strerror}")
            return False
        self.tell(name, True)
        return True


def _in_child(trial: Callable[[_Report], None], why: dict[str, str]) -> dict[str, Any]:
    """Run `trial` in a forked child and return what it reported; the reasons go to `why`."""
    reader, writer = os.pipe()

    def run() -> None:
        os.close(reader)
        trial(_Report(writer))

    pid = forked(run)
    os.close(writer)
    with open(reader, encoding="utf-8") as lines:
        reports = [json.loads(line) for line in lines]
    os.waitpid(pid, 0)
    why.update({name: reason for name, _, reason in reports if reason})
    return {name: value for name, value, _ in reports}


def _fork() -> int:
    # Python warns about fork() in a process with threads, since locks may be held in the child. These children
    # use no locks: they make system calls and leave by _exit().
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def forked(work: Callable[[], object]) -> int:
    """Fork a child that does `work` and exits; return its PID. The caller must wait for it."""
    pid = _fork()
    if pid == 0:
        with _Exit():
            work()
    return pid


class _Exit:
    """Ends a forked child at the end of the block in any case: it must not run on as a copy of its parent."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os._exit(0 if kind is None else 1)


# --- single calls that need nothing -------------------------------------------------------------------------


def _try_calls(report: _Report) -> None:
    """Try what single calls in a child can show."""
    me = os.getpid()
    vdso = _vdso_address()
    state = bytearray(8)
    report.attempt("kcmp", lambda: syscall(_KCMP, me, me, 0, 0, 0), "kcmp")
    report.attempt("pidfd_getfd", lambda: _take_own_descriptor(me))
    report.attempt("process_vm", lambda: _copy_own_memory(me))
    report.attempt("can_choose_pids", _choose_a_pid, "clone3 with set_tid")
    report.attempt("pagemap_scan", _scan_a_page, "ioctl PAGEMAP_SCAN")
    report.attempt("uffd_wp_async", _open_userfaultfd, "userfaultfd with WP_ASYNC")
    pr_timer_create_restore_ids, get = 77, 2
    report.attempt(
        "timer_restore_ids",
        lambda: syscall(_PRCTL, pr_timer_create_restore_ids, get),
        "prctl PR_TIMER_CREATE_RESTORE_IDS",
    )
    arch_shstk_status = 0x5005
    report.attempt(
        "shadow_stacks",
        lambda: syscall(_ARCH_PRCTL, arch_shstk_status, state),
        "arch_prctl ARCH_SHSTK_STATUS",
    )
    report.attempt("map_vdso", _map_vdso_again, "arch_prctl ARCH_MAP_VDSO_64")
    # mprotect() of a sealed mapping fails even without a change (mm/mprotect.c: can_modify_vma() comes first).
    read_and_execute = 5
    answer = try_syscall(_MPROTECT, vdso, resource.getpagesize(), read_and_execute)
    report.tell("sealed_mappings", answer == -errno.EPERM)


def _take_own_descriptor(pid: int) -> None:
    pidfd = pidfd_open(pid)
    os.close(syscall(_PIDFD_GETFD, pidfd, pidfd, 0))
    os.close(pidfd)


def _copy_own_memory(pid: int) -> None:
    source, target = bytearray(8), bytearray(8)
    for call in (_PROCESS_VM_READV, _PROCESS_VM_WRITEV):
        syscall(call, pid, Words(target, 8), 1, Words(source, 8), 1, 0)


def _scan_a_page() -> None:
    # struct pm_scan_arg (linux/fs.h); older headers lack it. Scans the first page for a present page.
    pagemap_scan, page_is_present = 0xC0606610, 1 << 3
    argument = struct.pack("<12Q", 96, 0, 0, 4096, 0, 0, 0, 0, 0, page_is_present, 0, page_is_present)
    with open("/proc/self/pagemap", "rb") as pagemap:
        fcntl.ioctl(pagemap, pagemap_scan, bytearray(argument))


def _open_userfaultfd() -> None:
    uffd_user_mode_only, uffdio_api, api = 1, 0xC018AA3F, 0xAA
    wp_unpopulated, wp_async = 1 << 13, 1 << 15
    fd = syscall(_USERFAULTFD, os.O_CLOEXEC | uffd_user_mode_only)
    try:
        fcntl.ioctl(fd, uffdio_api, bytearray(struct.pack("<3Q", api, wp_unpopulated | wp_async, 0)))
    finally:
        os.close(fd)


def _map_vdso_again() -> None:
    # While a vDSO is mapped, the kernel answers EEXIST instead of mapping another (map_vdso_once()).
    arch_map_vdso_64 = 0x2003
    try:
        syscall(_ARCH_PRCTL, arch_map_vdso_64, 0)
    except FileExistsError:
        return


def _vdso_address() -> int:
    auxv = Path("/proc/self/auxv").read_bytes()
    return int(dict(struct.iter_unpack("<2Q", auxv)).get(_AT_SYSINFO_EHDR, 0))


# --- tracing ------------------------------------------------------------------------------------------------

_ATTACH, _SETOPTIONS, _GETREGSET, _GET_RSEQ = 16, 0x4200, 0x4204, 0x420F
_SUSPEND_SECCOMP = 0x200000
_NT_X86_XSTATE = 0x202
XCR0_OFFSET = 464  # offset in the xsave area: the kernel puts XCR0 into the software-reserved bytes (ptrace.c)


def _try_tracing(report: _Report) -> None:
    """Try which processes this user may trace, and what a tracer can find out."""
    sibling = _sleeping_child()
    tracer = forked(lambda: report.attempt("trace_siblings", lambda: _attach(sibling), "ptrace of a sibling"))
    os.waitpid(tracer, 0)
    if report.attempt("trace_descendants", lambda: _attach(sibling), "ptrace of a child"):
        answer = bytearray(24)
        report.attempt(
            "rseq_configuration",
            lambda: syscall(_PTRACE, _GET_RSEQ, sibling, len(answer), answer),
            "PTRACE_GET_RSEQ_CONFIGURATION",
        )
        report.attempt(
            "read_filters",
            lambda: syscall(_PTRACE, _SETOPTIONS, sibling, 0, _SUSPEND_SECCOMP),
            "PTRACE_O_SUSPEND_SECCOMP",
        )
        area = bytearray(65536)
        vector = Words(area, len(area))  # struct iovec
        with suppress(OSError):  # no xsave in this processor: the fields stay 0
            syscall(_PTRACE, _GETREGSET, sibling, _NT_X86_XSTATE, vector)
            report.tell("xsave_size", vector[1])
            report.tell("xfeatures", int.from_bytes(area[XCR0_OFFSET : XCR0_OFFSET + 8], "little"))
    os.kill(sibling, signal.SIGKILL)
    os.waitpid(sibling, 0)


def _sleeping_child() -> int:
    me = os.getpid()
    return forked(lambda: sleep_with(me))


def sleep_with(parent: int) -> None:
    """Sleep until a signal ends this process, at the latest when the thread that forked it ends.

    Args:
        parent: the PID of the parent process. If that has ended already, the kernel sends no signal; so it is checked.
    """
    set_pdeathsig = 1
    syscall(_PRCTL, set_pdeathsig, signal.SIGKILL)
    while os.getppid() == parent:
        signal.pause()


def _attach(pid: int) -> None:
    """Attach to `pid`, and wait until it has stopped."""
    syscall(_PTRACE, _ATTACH, pid)
    wall = 0x40000000
    os.waitpid(pid, wall)


# --- namespaces ---------------------------------------------------------------------------------------------

_TRIED_PID = 300
"""Any PID but 1 and 2, which a new namespace would give anyway."""


def _try_namespaces(report: _Report) -> None:
    """Try a small capsule: a user namespace, in it a PID and a mount namespace, in these a chosen PID."""
    if not report.attempt("user_namespaces", _enter_user_namespace, "unshare CLONE_NEWUSER"):
        return
    report.attempt("time_namespaces", lambda: syscall(_UNSHARE, _CLONE_NEWTIME), "unshare CLONE_NEWTIME")
    if not report.attempt(
        "pid_namespaces",
        lambda: syscall(_UNSHARE, _CLONE_NEWPID | _CLONE_NEWNS),
        "unshare CLONE_NEWPID | CLONE_NEWNS",
    ):
        return
    first = _fork()
    if first == 0:
        with _Exit():
            report.attempt("mount_proc", _mount_proc, "mount of /proc")
            report.attempt("set_tid", _clone_with_pid, "clone3 with set_tid")
            report.attempt("set_mm_map", _set_mm_map, "prctl PR_SET_MM_MAP")
    os.waitpid(first, 0)


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    syscall(_UNSHARE, _CLONE_NEWUSER)
    for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _mount_proc() -> None:
    # Make mounts private first, so that nothing mounted here propagates to another namespace.
    syscall(_MOUNT, b"none\0", b"/\0", 0, _MS_REC | _MS_PRIVATE, 0)
    syscall(_MOUNT, b"proc\0", b"/proc\0", b"proc\0", 0, 0)


def _choose_a_pid() -> None:
    # The kernel checks for permission before it reports EEXIST for a PID in use (alloc_pid() in kernel/pid.c).
    with suppress(FileExistsError):
        _clone_with_pid()


def _clone_with_pid() -> None:
    # struct clone_args (linux/sched.h): fields 5, 9, 10 are exit_signal, set_tid, set_tid_size.
    args = Words(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, struct.pack("<i", _TRIED_PID), 1, 0)
    pid = syscall(_CLONE3, args, 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _set_mm_map() -> None:
    """Set this process's memory layout to its current values, and try to set the exe link, which stays the same."""
    pr_set_mm, pr_set_mm_map, no_exe = 35, 14, 2**32 - 1
    text = Path("/proc/self/stat").read_bytes()
    # Counted from the state, which follows the name: proc_pid_stat(5), fields 26-28 and 45-51.
    stat = [int(n) for n in text[text.rindex(b")") + 4 :].split()]
    start_code, end_code, start_stack = stat[22:25]
    start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end = stat[41:48]
    brk = syscall(_BRK, 0)
    layout = [start_code, end_code, start_data, end_data, start_brk, brk, start_stack]
    layout += [arg_start, arg_end, env_start, env_end]

    def set_map(exe: int) -> None:
        argument = struct.pack("<11QQII", *layout, 0, 0, exe)
        syscall(_PRCTL, pr_set_mm, pr_set_mm_map, argument, len(argument))

    set_map(no_exe)
    exe = os.open("/proc/self/exe", os.O_RDONLY)
    try:
        set_map(exe)
    except OSError as error:
        # EBUSY, since the old file is still mapped: the kernel checks that only after the permission.
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(exe)


# --- values that are only read ------------------------------------------------------------------------------


def _status() -> dict[str, str]:
    fields = procfs.status(procfs.read("/proc/self/status"))
    return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _switch(path: str) -> bool | None:
    number = _number(path)
    return None if number is None else number != 0


def _chosen(path: str) -> str:
    """Return the word in brackets, as in "always [madvise] never"."""
    with suppress(OSError):
        return Path(path).read_text().partition("[")[2].partition("]")[0]
    return ""


def _masked_proc() -> tuple[str, ...]:
    points = (os.fsdecode(mount.point) for mount in procfs.mounts("self"))
    # systemd mounts the file system binfmt_misc there, which hides nothing.
    return tuple(sorted({p for p in points if p.startswith("/proc/") and p != "/proc/sys/fs/binfmt_misc"}))


def _cpu_flags() -> frozenset[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:  # those of the first processor: the kernel uses only what all processors have
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
