"""`torpor doctor`: reports what this host can do, what that means, and what the administrator can allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from torpor.cli.common import command_options, console, print_json, reset_sigchld, store_option

if TYPE_CHECKING:
    from torpor.probe import Probe
    from torpor.remote.pid_allocation import Walk
    from torpor.restorer.id_maps import Mapped

CANNOT_WORK = 1
"""Exit code: checkpoints or restores without root cannot work here."""

MANY_DESCRIPTORS = 4096
"""Descriptors of a tree of some hundred processes; a lower hard limit is reported."""

MARKS = {"ok": ("ok", "green"), "limited": ("limited", "yellow"), "no": ("no", "red"), "info": ("", "dim")}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    """The field of Probe that it is about, for programs."""
    title: str
    verdict: str
    """ok, limited or no; info for a fact that is neither good nor bad."""
    means: str
    """What it means for the user."""
    allow: str = ""
    """What the administrator can allow; empty if nothing is missing."""
    why: str = ""
    """What failed, and the kernel's error."""


# For each way in which an administrator, a distribution or a container runtime forbids user namespaces: what to
# do to allow them. docs/doctor.md explains each in full.
_APPARMOR = (
    "install docs/apparmor/torpor as /etc/apparmor.d/torpor and run "
    "`apparmor_parser -r /etc/apparmor.d/torpor`, or for every program: "
    "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
)
_RIGHT = (
    "CAP_CHECKPOINT_RESTORE for the user, by pam_cap or a helper with a file capability (docs/doctor.md): "
    "then jobs are woken natively"
)
_DEBIAN_SWITCH = "sysctl kernel.unprivileged_userns_clone=1"
_LIMIT = "sysctl user.max_user_namespaces=15000"
_CONTAINER = "start the container with --security-opt seccomp=unconfined, or a profile that allows {}"
_CONFIG = "a kernel with CONFIG_CHECKPOINT_RESTORE, as all distributions build it"
_MASKED = (
    "start the container with --security-opt systempaths=unconfined "
    "(Kubernetes: hostUsers: false and procMount: Unmasked)"
)


def examine(probe: Probe, walk: Walk | None = None, ids: Mapped | None = None) -> list[Finding]:
    """Assess a host. Has no side effects, so that tests can invent hosts.

    Args:
        probe: what the host can do.
        walk: a walk through all PIDs; None if no walk is possible.
        ids: the ids that exist in a capsule; None if unknown.
    """
    lost = ids.without(probe.groups) if ids else [*probe.groups]
    way = [_way(probe, walk, len(lost)), *_groups(probe, ids, lost)]
    return [*way, *_tracing(probe), *_capsules(probe), *_optional_features(probe), *_facts(probe)]


def _finding(probe: Probe, name: str, title: str, means: str, otherwise: tuple[str, str, str]) -> Finding:
    """Make a finding about the field `name`: `means` if it is true, else (verdict, meaning, what to allow)."""
    if getattr(probe, name):
        return Finding(name, title, "ok", means)
    verdict, trouble, allow = otherwise
    return Finding(name, title, verdict, trouble, allow, probe.why.get(name, ""))


def _no(trouble: str, allow: str = "") -> tuple[str, str, str]:
    return "no", trouble, allow


def _way(probe: Probe, walk: Walk | None, lost: int) -> Finding:
    """Find how a tree is woken here, and at what cost: a capsule lacks `lost` of the user's groups."""
    from torpor.remote.pid_allocation import WALK_SECONDS

    name, title = "can_choose_pids", "how jobs are woken"
    if probe.can_choose_pids:
        return Finding(name, title, "ok", "natively where the PIDs are free, else in a capsule")
    if probe.cannot_wake:
        means = "by root only"
        if probe.can_walk and walk:
            means = f"natively only, after a walk of up to {max(walk.seconds, 1):.0f} s"
            means += "; after another boot where the host has been up for longer than the one before"
        return Finding(name, title, "limited", means, _RIGHT)
    capsule, most = "in a capsule: without setuid programs", ""
    if walk and probe.set_mm_map:
        most = f"up to {max(walk.seconds, 1):.0f} s ({walk.length} PIDs, {walk.pace.per_second:.0f} a second)"
    if not lost:
        means = f"{capsule}; with --as=native after a walk of {most}" if most else capsule
        return Finding(name, title, "info", means, _RIGHT)
    if most and walk and walk.seconds <= WALK_SECONDS:
        means = f"natively where the PIDs are free, after a walk of {most}, for your groups"
        return Finding(name, title, "ok", means, _RIGHT)
    if most:
        capsule = f"natively where a walk takes {WALK_SECONDS:.0f} s at most, of {most}; else {capsule}"
    groups = f"{lost} groups that you are in besides your own" if lost > 1 else "a group besides your own"
    return Finding(name, title, "limited", f"{capsule}, and {groups} count for no change of a file", _RIGHT)


def _groups(probe: Probe, ids: Mapped | None, lost: Sequence[int]) -> Iterator[Finding]:
    """Find which of the user's groups exist in a capsule, and the lines of /etc/subgid for the others."""
    if not probe.groups or not ids:
        return
    name, title = "mapped_groups", "your groups in a capsule"
    if not lost:
        yield Finding(name, title, "ok", "all are there: files can be given to them")
        return
    lines = ", ".join(f"{probe.uid}:{gid}:1" for gid in lost)
    allow = f"newgidmap (Debian: the package uidmap) and in /etc/subgid, a line each: {lines}"
    means = f"not there: {', '.join(map(str, lost))}; a capsule is used on any other host than the checkpoint's"
    yield Finding(name, title, "limited", means, allow, ids.why)


def _tracing(probe: Probe) -> Iterator[Finding]:
    launched = "only the program that launched a job can freeze it: start jobs with `torpor run`"
    if probe.trace_descendants and not probe.trace_siblings:
        yield Finding(
            "trace_siblings",
            "trace own processes",
            "limited",
            launched + _scope(probe),
            "sysctl kernel.yama.ptrace_scope=0, to last in /etc/sysctl.d/10-ptrace.conf",
            probe.why.get("trace_siblings", ""),
        )
    else:
        yield _finding(
            probe,
            "trace_descendants",
            "trace own processes",
            "any process of yours can be frozen",
            _no(f"nothing can be frozen{_scope(probe)}", _allow_tracing(probe)),
        )
    nothing = "nothing can be frozen"
    calls = "process_vm_readv, process_vm_writev and ptrace"
    container = _CONTAINER.format(calls) if probe.seccomp else ""
    slower = "processes send their descriptors themselves while they are frozen: pauses are longer"
    wider = _CONTAINER.format("kcmp and pidfd_getfd") if probe.seccomp else ""
    for name, title, means in (
        ("kcmp", "compare descriptors (kcmp)", "shared file positions are kept"),
        ("pidfd_getfd", "copy descriptors (pidfd_getfd)", "the content of sockets and pipes can be saved"),
    ):
        yield _finding(probe, name, title, means, ("limited", slower, wider))
    for name, title, means in (
        ("process_vm", "copy memory (process_vm_readv)", "the memory of processes can be saved"),
        ("rseq_configuration", "restartable sequences (ptrace)", "threads of a current libc can be saved"),
    ):
        yield _finding(probe, name, title, means, _no(nothing, container or "a newer kernel"))
    whole = "a process is frozen with all that it started"
    no_list = _no(nothing, "a kernel with CONFIG_PROC_CHILDREN, as all distributions build it")
    yield _finding(probe, "proc_children", "lists of children (/proc)", whole, no_list)
    if probe.seccomp:
        shared = "a job is frozen if it is under the very same filters, as in one container"
        allow = "start Torpor outside of the container, or there from what has started the job"
        yield Finding("seccomp", "Torpor runs under a system-call filter (seccomp)", "limited", shared, allow)


def _scope(probe: Probe) -> str:
    return "" if probe.yama_scope is None else f" (Yama's ptrace_scope is {probe.yama_scope})"


def _allow_tracing(probe: Probe) -> str:
    if probe.yama_scope == 3:
        return "ptrace_scope 3 lasts until the next boot; remove it from /etc/sysctl.d and reboot"
    if probe.yama_scope:
        return "sysctl kernel.yama.ptrace_scope=1, or give the user CAP_SYS_PTRACE"
    return "start the container with --cap-add SYS_PTRACE" if probe.seccomp else ""


def _capsules(probe: Probe) -> Iterator[Finding]:
    rootless = "without it nothing can be woken except by root"
    if probe.can_walk:
        rootless = "without it jobs are woken natively only, after a walk"
    withheld = _allow_namespaces(probe)
    steps = (
        ("user_namespaces", "user namespaces", "jobs can be woken without root", withheld),
        ("pid_namespaces", "PID namespaces in them", "jobs get their old PIDs", withheld),
        ("mount_proc", "a /proc of their own", "jobs see their own PIDs in /proc", _allow_proc(probe)),
        ("set_tid", "choosing PIDs (clone3)", "jobs get their old PIDs", _CONTAINER.format("clone3")),
        (
            "set_mm_map",
            "memory layout (PR_SET_MM_MAP)",
            "jobs keep name, arguments and program",
            _CONFIG,
        ),
    )
    missing = ""
    for name, title, means, allow in steps:
        if missing:
            yield Finding(name, title, "no", f"not tried: it needs {missing}")
            continue
        yield _finding(probe, name, title, means, ("limited" if probe.can_walk else "no", rootless, allow))
        if not getattr(probe, name) and name in ("user_namespaces", "pid_namespaces"):
            missing = title
    placing = "placing the vDSO"
    nothing = "nothing can be woken, not even by root"
    if probe.sealed_mappings:
        sealed = f"the system's mappings are sealed: {nothing}"
        yield Finding("sealed_mappings", placing, "no", sealed, "a kernel without CONFIG_MSEAL_SYSTEM_MAPPINGS")
    else:
        found = "programs find the clock where it was"
        yield _finding(probe, "map_vdso", placing, found, _no(nothing, _CONFIG))


def _allow_namespaces(probe: Probe) -> str:
    causes = [
        (probe.apparmor_restricts_userns, _APPARMOR),
        (probe.unprivileged_userns_clone is False, _DEBIAN_SWITCH),
        (probe.userns_limit == 0, _LIMIT),
        (probe.seccomp, _CONTAINER.format("unshare, clone, mount and clone3")),
    ]
    found = [words for holds, words in causes if holds]
    return "; and ".join(found) or "they may be switched off in this kernel (CONFIG_USER_NS), or this is a chroot"


def _allow_proc(probe: Probe) -> str:
    if probe.masked_proc:
        return f"{_MASKED}; hidden now: {', '.join(probe.masked_proc)}"
    return _allow_namespaces(probe)


def _optional_features(probe: Probe) -> Iterator[Finding]:
    yield _finding(
        probe,
        "pagemap_scan",
        "fast page scans (PAGEMAP_SCAN)",
        "pauses stay short for large processes",
        ("limited", "large processes are paused longer", "a kernel from 6.7 on"),
    )
    yield _finding(
        probe,
        "timer_restore_ids",
        "ids of POSIX timers",
        "timers get their ids back at once",
        ("limited", "high timer ids are slow to restore", "a kernel from 6.16 on"),
    )
    yield _finding(
        probe,
        "time_namespaces",
        "time namespaces",
        "the monotonic clock of a woken job goes on from where it stopped",
        ("limited", "the monotonic clock of a woken job is this host's", "a kernel with CONFIG_TIME_NS"),
    )
    soft, hard = probe.nofile
    shown = f"{soft} open files, up to {hard}"
    if hard >= MANY_DESCRIPTORS:
        yield Finding("nofile", "open files (RLIMIT_NOFILE)", "ok", shown)
    else:
        trouble = f"{shown}: trees with many descriptors cannot be saved or woken"
        allow = "raise nofile in /etc/security/limits.conf, or LimitNOFILE= of the service"
        yield Finding("nofile", "open files (RLIMIT_NOFILE)", "limited", trouble, allow)


def _facts(probe: Probe) -> Iterator[Finding]:
    yield Finding(
        "transparent_hugepages",
        "transparent huge pages",
        "info",
        f"{probe.transparent_hugepages or 'not in this kernel'}; the larger the pages, the shorter the pause",
    )
    features = f"xsave area {probe.xsave_size} bytes, components {probe.xfeatures:#x}"
    yield Finding(
        "xfeatures", "processor state", "info", f"{features}: a host needs at least the same to wake jobs of this one"
    )


def report(probe: Probe, walk: Walk | None = None, ids: Mapped | None = None) -> dict[str, Any]:
    """Return everything as JSON values: the verdict, the findings, the values of the probe, a walk through all PIDs."""
    values = {f.name: getattr(probe, f.name) for f in dataclasses.fields(probe)}
    return {
        "checkpoint": probe.can_checkpoint,
        "restore_rootless": probe.can_restore_rootless,
        "restore_in_place": probe.can_choose_pids and probe.map_vdso and not probe.sealed_mappings,
        "findings": [dataclasses.asdict(finding) for finding in examine(probe, walk, ids)],
        "walk": walk and {"pids": walk.length, "per_second": round(walk.pace.per_second), "seconds": walk.seconds},
        "probe": {name: sorted(v) if isinstance(v, frozenset) else v for name, v in values.items()},
    }


@click.command("doctor", short_help="Show what this host can do, and what to allow.")
@click.option(
    "--slurm", is_flag=True, help="Check this Slurm cluster, and how large a job can be saved in its warning time."
)
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", help="With --slurm: start a step on N nodes to try the store."
)
@store_option
@command_options
def command(as_json: bool, slurm: bool, nodes: int | None, store: str | None) -> int:
    """Show what this host can do, and what an administrator can allow.

    Exits with 0 if checkpoints and restores without root can work here, else with 1. Only --slurm uses the store: it
    writes a temporary file there to measure its speed.
    """
    from torpor import procfs
    from torpor.probe import probe
    from torpor.remote.pid_allocation import whole_round
    from torpor.restorer.capsule import tried_ids

    if nodes is not None and not slurm:
        raise click.UsageError("--nodes is for --slurm.")
    reset_sigchld()
    host = probe()
    walk = None if slurm else whole_round()
    ids = None if slurm or procfs.is_root() else tried_ids()
    findings = _examine_slurm(host, store, nodes) if slurm else examine(host, walk, ids)
    if as_json:
        found = {"findings": [dataclasses.asdict(finding) for finding in findings]}
        print_json(found if slurm else report(host, walk, ids))
    else:
        _print_findings(findings)
        if not slurm:
            _print_verdict(host)
    return 0 if host.can_checkpoint and host.can_wake else CANNOT_WORK


def _examine_slurm(host: Probe, store: str | None, nodes: int | None) -> list[Finding]:
    from torpor.store import Store
    from torpor_slurm import controller, site

    config, partitions = controller.configuration(), site.partitions()
    place = Store(store).path
    found = site.examine(config, partitions, host.can_restore_rootless, site.measure(place))
    found += site.used_on(place)
    if nodes is not None:
        found.append(site.try_from_nodes(str(place), nodes))
    return [Finding(one.name, one.title, one.verdict, one.means, one.allow) for one in found]


def _print_findings(findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        why = f" ({finding.why})" if finding.why and finding.verdict != "ok" else ""
        table.add_row(Text(mark, style), finding.title, finding.means + why)
    out = console()
    out.print(table)
    allow = dict.fromkeys(finding.allow for finding in findings if finding.allow)
    if allow:
        out.print("\nWhat the administrator can allow:")
        for words in allow:
            out.print(f"  - {words}")


def _print_verdict(host: Probe) -> None:
    can = [
        ("freeze your processes" if host.trace_siblings else "freeze what you launch", host.can_checkpoint),
        ("wake them without root", host.can_wake),
    ]
    click.echo()
    for deed, possible in can:
        click.echo(f"You {'can' if possible else 'cannot'} {deed} here.")
