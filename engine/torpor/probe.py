"""Find out what this host can do for this user: by trying, never by comparing versions.

Everything is tried once per process, mostly in forked children, since a seccomp filter may kill the process that tries,
or since the trial changes namespaces. The kernel versions below say when the mainline kernel got a feature;
distributions differ, so no code uses them.
"""

from __future__ import annotations

import os
import platform
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torpor import procfs, trials
from torpor.arch.x86_64 import xsave

CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_CHECKPOINT_RESTORE": 40,
}
"""The capabilities that let Torpor do more, with their numbers (linux/capability.h)."""


_TO_FREEZE = ("trace_descendants", "process_vm", "rseq_configuration", "proc_children")
_TO_WAKE = ("user_namespaces", "pid_namespaces", "mount_proc", "set_tid", "set_mm_map", "map_vdso")
"""In the order in which a capsule is made. If one fails, those after it are not tried."""


@dataclass(frozen=True)
class Probe:
    """What this host can do for this user. All fields are plain values, so that tests can invent hosts."""

    # The user
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
    """kcmp(2) (3.5): shows which descriptors share one open file description. Without it, processes report it."""
    pidfd_getfd: bool = False
    """pidfd_getfd(2) (5.6): copies a descriptor of another process. Without it, processes send theirs."""
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
    """This user can create a user namespace and map its own id in it."""
    pid_namespaces: bool = False
    """A PID and a mount namespace can be created in that user namespace."""
    mount_proc: bool = False
    """A /proc of the new PID namespace can be mounted there (containers with a masked /proc forbid it)."""
    set_tid: bool = False
    """clone3(2) accepts a chosen PID there (set_tid, 5.5)."""
    set_mm_map: bool = False
    """prctl(PR_SET_MM_MAP) (3.18, CONFIG_CHECKPOINT_RESTORE) sets the memory layout and exe link there."""
    lay_out_memory: bool = False
    """prctl(PR_SET_MM_MAP) sets the memory layout without the exe link here, which takes no namespace."""
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
    register_sets: tuple[tuple[int, int, int], ...] = ()
    """The number, the offset and the size of each register set that the processor has, in a thread's xsave area."""

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
        # A name without a reason was not tried, since an earlier trial failed.
        return "; ".join(self.why[name] for name in missing if name in self.why) or ", ".join(missing)

    @property
    def cannot_wake(self) -> str:
        """Why nothing can be woken in a capsule: the first step of making one that fails here. Empty if none fails."""
        missing = next((name for name in _TO_WAKE if not getattr(self, name)), "")
        return self.why.get(missing, missing)

    @property
    def can_restore_rootless(self) -> bool:
        """Whether a tree can be woken in a capsule, with its old PIDs and without any privilege."""
        return not self.cannot_wake and not self.sealed_mappings

    @property
    def can_walk(self) -> bool:
        """Whether a tree can be woken natively without the right to choose PIDs, by waiting for them.

        Its links /proc/PID/exe are set in a user namespace or, where there is none, by executing its programs.
        """
        return (self.can_set_exe or self.lay_out_memory) and self.map_vdso and not self.sealed_mappings

    @property
    def can_set_exe(self) -> bool:
        """Whether a helper in a user namespace can set the link /proc/PID/exe of a process."""
        return self.user_namespaces and self.set_mm_map

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
        "register_sets": tuple((number, *place) for number, place in xsave.host().items()),
    }
    # A child may be killed because of what it tries. Then all that it has not reported counts as impossible.
    facts |= trials.in_children((trials.try_calls, trials.try_tracing, trials.try_namespaces), why)
    return Probe(**facts, why=why)


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
