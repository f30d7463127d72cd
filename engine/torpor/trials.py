"""Trials of what this host lets this user do, each in a forked child: see `torpor.probe`.

A seccomp filter may kill the process that tries, and some trials change namespaces.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torpor.arch.x86_64 import NR, XCR0_OFFSET
from torpor.remote.children import Exiting, fork, forked, forked_with_pipe, sleep_with
from torpor.remote.sys import Words, pidfd_open, syscall, try_syscall

_CLONE_NEWTIME, _CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x80, 0x20000, 0x10000000, 0x20000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_AT_SYSINFO_EHDR = 33


class Report:
    """Reports what a trial in a child finds, line by line, so that the lines before a kill are not lost."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, name: str, value: object, why: str = "") -> None:
        """Report a value, and the reason for it."""
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


def in_children(trials: Iterable[Callable[[Report], None]], why: dict[str, str]) -> dict[str, Any]:
    """Run each trial in a forked child and return what they reported; the reasons go to `why`.

    They run at the same time: a namespace is made and ended by waiting for all processors (RCU).
    """
    found: dict[str, Any] = {}
    for pid, reader in [forked_with_pipe(partial(_report, trial)) for trial in trials]:
        with open(reader, encoding="utf-8") as lines:
            reports = [json.loads(line) for line in lines]
        os.waitpid(pid, 0)
        why.update({name: reason for name, _, reason in reports if reason})
        found |= {name: value for name, value, _ in reports}
    return found


def _report(trial: Callable[[Report], None], writer: int) -> None:
    trial(Report(writer))


# --- single calls that need nothing -------------------------------------------------------------------------


def try_calls(report: Report) -> None:
    """Try features that a single system call in a child can test."""
    me = os.getpid()
    vdso = _vdso_address()
    state = bytearray(8)
    report.attempt("kcmp", lambda: syscall(NR.kcmp, me, me, 0, 0, 0), "kcmp")
    report.attempt("pidfd_getfd", lambda: _take_own_descriptor(me))
    report.attempt("process_vm", lambda: _copy_own_memory(me))
    report.attempt("can_choose_pids", _choose_a_pid, "clone3 with set_tid")
    report.attempt("pagemap_scan", _scan_a_page, "ioctl PAGEMAP_SCAN")
    report.attempt("uffd_wp_async", _open_userfaultfd, "userfaultfd with WP_ASYNC")
    pr_timer_create_restore_ids, get = 77, 2
    report.attempt(
        "timer_restore_ids",
        lambda: syscall(NR.prctl, pr_timer_create_restore_ids, get),
        "prctl PR_TIMER_CREATE_RESTORE_IDS",
    )
    arch_shstk_status = 0x5005
    report.attempt(
        "shadow_stacks",
        lambda: syscall(NR.arch_prctl, arch_shstk_status, state),
        "arch_prctl ARCH_SHSTK_STATUS",
    )
    report.attempt("lay_out_memory", lambda: _set_mm_map(exe=False), "prctl PR_SET_MM_MAP")
    report.attempt("map_vdso", _map_vdso_again, "arch_prctl ARCH_MAP_VDSO_64")
    # mprotect() of a sealed mapping fails even without a change (mm/mprotect.c: can_modify_vma() comes first).
    read_and_execute = 5
    answer = try_syscall(NR.mprotect, vdso, resource.getpagesize(), read_and_execute)
    report.tell("sealed_mappings", answer == -errno.EPERM)


def _take_own_descriptor(pid: int) -> None:
    pidfd = pidfd_open(pid)
    os.close(syscall(NR.pidfd_getfd, pidfd, pidfd, 0))
    os.close(pidfd)


def _copy_own_memory(pid: int) -> None:
    source, target = bytearray(8), bytearray(8)
    for call in (NR.process_vm_readv, NR.process_vm_writev):
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
    fd = syscall(NR.userfaultfd, os.O_CLOEXEC | uffd_user_mode_only)
    try:
        fcntl.ioctl(fd, uffdio_api, bytearray(struct.pack("<3Q", api, wp_unpopulated | wp_async, 0)))
    finally:
        os.close(fd)


def _map_vdso_again() -> None:
    # While a vDSO is mapped, the kernel answers EEXIST instead of mapping another (map_vdso_once()).
    arch_map_vdso_64 = 0x2003
    try:
        syscall(NR.arch_prctl, arch_map_vdso_64, 0)
    except FileExistsError:
        return


def _vdso_address() -> int:
    auxv = Path("/proc/self/auxv").read_bytes()
    return int(dict(struct.iter_unpack("<2Q", auxv)).get(_AT_SYSINFO_EHDR, 0))


# --- tracing ------------------------------------------------------------------------------------------------

_ATTACH, _SETOPTIONS, _GETREGSET, _GET_RSEQ = 16, 0x4200, 0x4204, 0x420F
_SUSPEND_SECCOMP = 0x200000
_NT_X86_XSTATE = 0x202


def try_tracing(report: Report) -> None:
    """Try which processes this user may trace, and what a tracer can find out."""
    sibling = _sleeping_child()
    tracer = forked(lambda: report.attempt("trace_siblings", lambda: _attach(sibling), "ptrace of a sibling"))
    os.waitpid(tracer, 0)
    if report.attempt("trace_descendants", lambda: _attach(sibling), "ptrace of a child"):
        answer = bytearray(24)
        report.attempt(
            "rseq_configuration",
            lambda: syscall(NR.ptrace, _GET_RSEQ, sibling, len(answer), answer),
            "PTRACE_GET_RSEQ_CONFIGURATION",
        )
        report.attempt(
            "read_filters",
            lambda: syscall(NR.ptrace, _SETOPTIONS, sibling, 0, _SUSPEND_SECCOMP),
            "PTRACE_O_SUSPEND_SECCOMP",
        )
        area = bytearray(65536)
        vector = Words(area, len(area))  # struct iovec
        with suppress(OSError):  # no xsave in this processor: the fields stay 0
            syscall(NR.ptrace, _GETREGSET, sibling, _NT_X86_XSTATE, vector)
            report.tell("xsave_size", vector[1])
            report.tell("xfeatures", int.from_bytes(area[XCR0_OFFSET : XCR0_OFFSET + 8], "little"))
    os.kill(sibling, signal.SIGKILL)
    os.waitpid(sibling, 0)


def _sleeping_child() -> int:
    me = os.getpid()
    return forked(lambda: sleep_with(me))


def _attach(pid: int) -> None:
    """Attach to `pid`, and wait until it has stopped."""
    syscall(NR.ptrace, _ATTACH, pid)
    wall = 0x40000000
    os.waitpid(pid, wall)


# --- namespaces ---------------------------------------------------------------------------------------------

_TRIED_PID = 300
"""Any PID but 1 and 2, which a new namespace would assign anyway."""


def try_namespaces(report: Report) -> None:
    """Try a small capsule: a user namespace, in it a PID and a mount namespace, in these a chosen PID."""
    if not report.attempt("user_namespaces", enter_user_namespace, "unshare CLONE_NEWUSER"):
        return
    report.attempt("time_namespaces", lambda: syscall(NR.unshare, _CLONE_NEWTIME), "unshare CLONE_NEWTIME")
    if not report.attempt(
        "pid_namespaces",
        lambda: syscall(NR.unshare, _CLONE_NEWPID | _CLONE_NEWNS),
        "unshare CLONE_NEWPID | CLONE_NEWNS",
    ):
        return
    first = fork()
    if first == 0:
        with Exiting():
            report.attempt("mount_proc", _mount_proc, "mount of /proc")
            report.attempt("set_tid", _clone_with_pid, "clone3 with set_tid")
            report.attempt("set_mm_map", _set_mm_map, "prctl PR_SET_MM_MAP")
    os.waitpid(first, 0)


def enter_user_namespace() -> None:
    """Enter a new user namespace in which this user's uid and gid are mapped to themselves."""
    uid, gid = os.geteuid(), os.getegid()
    syscall(NR.unshare, _CLONE_NEWUSER)
    for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _mount_proc() -> None:
    # Make mounts private first, so that nothing mounted here propagates to another namespace.
    syscall(NR.mount, b"none\0", b"/\0", 0, _MS_REC | _MS_PRIVATE, 0)
    syscall(NR.mount, b"proc\0", b"/proc\0", b"proc\0", 0, 0)


def _choose_a_pid() -> None:
    # The kernel checks for permission before it reports EEXIST for a PID in use (alloc_pid() in kernel/pid.c).
    with suppress(FileExistsError):
        _clone_with_pid()


def _clone_with_pid() -> None:
    # struct clone_args (linux/sched.h): fields 5, 9, 10 are exit_signal, set_tid, set_tid_size.
    args = Words(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, struct.pack("<i", _TRIED_PID), 1, 0)
    pid = syscall(NR.clone3, args, 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _set_mm_map(*, exe: bool = True) -> None:
    """Set this process's memory layout to its current values, and try to set the exe link, which stays the same."""
    pr_set_mm, pr_set_mm_map, no_exe = 35, 14, 2**32 - 1
    text = Path("/proc/self/stat").read_bytes()
    # Counted from the state, which follows the name: proc_pid_stat(5), fields 26-28 and 45-51.
    stat = [int(n) for n in text[text.rindex(b")") + 4 :].split()]
    start_code, end_code, start_stack = stat[22:25]
    start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end = stat[41:48]
    brk = syscall(NR.brk, 0)
    layout = [start_code, end_code, start_data, end_data, start_brk, brk, start_stack]
    layout += [arg_start, arg_end, env_start, env_end]

    def set_map(number: int) -> None:
        argument = struct.pack("<11QQII", *layout, 0, 0, number)
        syscall(NR.prctl, pr_set_mm, pr_set_mm_map, argument, len(argument))

    set_map(no_exe)
    if not exe:
        return
    program = os.open("/proc/self/exe", os.O_RDONLY)
    try:
        set_map(program)
    except OSError as error:
        # EBUSY, since the old file is still mapped: the kernel checks that only after the permission.
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(program)
