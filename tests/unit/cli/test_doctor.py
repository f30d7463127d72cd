"""What the doctor says of hosts that are made up: each way in which something is withheld."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torpor import probe as probing
from torpor import procfs
from torpor.cli import doctor
from torpor.probe import Probe
from torpor.remote.pid_allocation import Pace, Walk
from torpor.restorer import capsule
from torpor.restorer.id_maps import Mapped

ABLE = Probe(
    uid=1000,
    nofile=(1024, 524288),
    trace_descendants=True,
    trace_siblings=True,
    rseq_configuration=True,
    kcmp=True,
    pidfd_getfd=True,
    process_vm=True,
    proc_children=True,
    pagemap_scan=True,
    uffd_wp_async=True,
    user_namespaces=True,
    pid_namespaces=True,
    mount_proc=True,
    set_tid=True,
    set_mm_map=True,
    time_namespaces=True,
    map_vdso=True,
    timer_restore_ids=True,
)


def findings(**changes: object) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(replace(ABLE, **changes))}  # type: ignore[arg-type]


def test_an_able_host_needs_nothing() -> None:
    assert {f.verdict for f in findings().values()} <= {"ok", "info"}
    assert [name for name, f in findings().items() if f.allow] == ["can_choose_pids"]
    assert not any(f.allow for f in doctor.examine(replace(ABLE, can_choose_pids=True)))


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "allow"),
    [
        ({"trace_siblings": False, "yama_scope": 1}, "trace_siblings", "limited", "kernel.yama.ptrace_scope=0"),
        ({"trace_descendants": False, "yama_scope": 2}, "trace_descendants", "no", "CAP_SYS_PTRACE"),
        ({"trace_descendants": False, "yama_scope": 3}, "trace_descendants", "no", "reboot"),
        ({"trace_descendants": False, "seccomp": 2}, "trace_descendants", "no", "--cap-add SYS_PTRACE"),
        ({"kcmp": False, "seccomp": 2}, "kcmp", "limited", "seccomp=unconfined"),
        ({"process_vm": False, "seccomp": 2}, "process_vm", "no", "seccomp=unconfined"),
        ({"user_namespaces": False, "userns_limit": 0}, "user_namespaces", "no", "user.max_user_namespaces="),
        (
            {"user_namespaces": False, "unprivileged_userns_clone": False},
            "user_namespaces",
            "no",
            "kernel.unprivileged_userns_clone=1",
        ),
        ({"user_namespaces": False, "seccomp": 2}, "user_namespaces", "no", "seccomp=unconfined"),
        ({"user_namespaces": False}, "user_namespaces", "no", "chroot"),
        ({"seccomp": 2}, "seccomp", "limited", "from what has started the job"),
        # Ubuntu lets the user namespace come about and withholds what can be done in it.
        (
            {"pid_namespaces": False, "set_mm_map": False, "apparmor_restricts_userns": True},
            "pid_namespaces",
            "no",
            "/etc/apparmor.d/torpor",
        ),
        ({"mount_proc": False, "masked_proc": ("/proc/kcore",)}, "mount_proc", "limited", "systempaths=unconfined"),
        ({"sealed_mappings": True}, "sealed_mappings", "no", "CONFIG_MSEAL_SYSTEM_MAPPINGS"),
        ({"map_vdso": False}, "map_vdso", "no", "CONFIG_CHECKPOINT_RESTORE"),
        ({"pagemap_scan": False}, "pagemap_scan", "limited", "6.7"),
        ({"groups": (27, 100)}, "can_choose_pids", "limited", "CAP_CHECKPOINT_RESTORE"),
        ({"nofile": (256, 256)}, "nofile", "limited", "limits.conf"),
    ],
)
def test_what_is_withheld(changes: dict[str, object], name: str, verdict: str, allow: str) -> None:
    finding = findings(**changes)[name]
    assert finding.verdict == verdict
    assert allow in finding.allow


def test_what_builds_on_something_missing_is_not_tried() -> None:
    found = findings(user_namespaces=False, pid_namespaces=False, mount_proc=False, set_tid=False)
    assert [found[name].verdict for name in ("pid_namespaces", "mount_proc", "set_tid")] == ["no"] * 3
    assert found["set_tid"].means == "not tried: it needs user namespaces"
    assert not found["set_tid"].allow


def test_the_kernels_answer_is_told() -> None:
    found = findings(set_tid=False, why={"set_tid": "clone3 with set_tid: Operation not permitted"})
    assert found["set_tid"].why == "clone3 with set_tid: Operation not permitted"


@pytest.mark.parametrize(
    ("changes", "words", "code"),
    [
        ({}, "You can freeze your processes here.\nYou can wake them without root here.\n", 0),
        ({"trace_siblings": False, "yama_scope": 1}, "You can freeze what you launch here.", 0),
        ({"set_mm_map": False}, "You cannot wake them without root here.", 1),
    ],
)
def test_for_people(
    changes: dict[str, object],
    words: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = replace(ABLE, **changes)  # type: ignore[arg-type]
    monkeypatch.setattr(probing, "probe", lambda: host)
    monkeypatch.setattr(capsule, "tried_ids", lambda: None)
    assert doctor.command.main([], standalone_mode=False) == code
    assert words in capsys.readouterr().out


def test_a_line_for_a_group_is_shown_as_it_is_to_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Group 100 is that of all users on some distributions; ":100:" is the name of a picture, too."""
    monkeypatch.setattr(probing, "probe", lambda: replace(ABLE, groups=(100,)))
    monkeypatch.setattr(procfs, "is_root", lambda: False)
    monkeypatch.setattr(capsule, "tried_ids", lambda: Mapped((range(1000, 1001),), (range(1000, 1001),)))
    doctor.command.main([], standalone_mode=False)
    right, lines = capsys.readouterr().out.partition("can allow:\n")[2].splitlines()[:2]
    assert right.startswith("  - CAP_CHECKPOINT_RESTORE"), "it comes first"
    assert lines.endswith(" 1000:100:1")


@pytest.mark.parametrize(
    ("groups", "pids", "verdict", "words"),
    [
        ((), 32768, "info", "in a capsule: without setuid programs; with --as=native after a walk of up to 1 s"),
        (
            (27,),
            32768,
            "ok",
            "natively where the PIDs are free, after a walk of up to 1 s (32768 PIDs",
        ),
        ((27,), 1 << 22, "limited", "natively where a walk takes 20 s at most, of up to 84 s"),
    ],
)
def test_how_far_a_walk_is(groups: tuple[int, ...], pids: int, verdict: str, words: str) -> None:
    found = doctor.examine(replace(ABLE, groups=groups), Walk(Pace(50_000.0, 2), pids))[0]
    assert found.verdict == verdict
    assert found.means.startswith(words)
    assert "CAP_CHECKPOINT_RESTORE" in found.allow


def test_the_way_of_a_wake_comes_first() -> None:
    assert doctor.examine(ABLE)[0].means == "in a capsule: without setuid programs"
    native = replace(ABLE, can_choose_pids=True, groups=(27,))
    assert (doctor.examine(native)[0].verdict, doctor.examine(native)[0].allow) == ("ok", "")


def test_groups_that_a_capsule_has_cost_nothing() -> None:
    host = replace(ABLE, groups=(27, 100))
    some = Mapped((range(1000, 1001),), (range(27, 28), range(1000, 1001)), "newgidmap: not allowed")
    way, groups, *_ = doctor.examine(host, None, some)
    assert (way.verdict, groups.verdict) == ("limited", "limited")
    assert "a group besides your own" in way.means
    assert groups.allow.endswith("/etc/subgid, a line each: 1000:100:1")
    assert groups.why == "newgidmap: not allowed"
    # The right to choose PIDs comes first among what can be allowed.
    assert "CAP_CHECKPOINT_RESTORE" in way.allow
    all_of_them = Mapped((range(1000, 1001),), (range(20, 101), range(1000, 1001)))
    way, groups, *_ = doctor.examine(host, None, all_of_them)
    assert [one.verdict for one in (way, groups)] == ["info", "ok"]
    assert groups.allow == ""
    way, *_ = doctor.examine(host, Walk(Pace(50_000.0, 2), 32768), all_of_them)
    assert way.means.startswith("in a capsule: without setuid programs; with --as=native after a walk")


def test_groups_in_a_capsule_matter_on_every_way() -> None:
    """Clocks of another host take a capsule, also where PIDs may be chosen or walked to."""
    some = Mapped((range(1000, 1001),), (range(1000, 1001),))
    for host, walk in (
        (replace(ABLE, groups=(27,), can_choose_pids=True), None),
        (replace(ABLE, groups=(27,)), Walk(Pace(50_000.0, 2), 32768)),
    ):
        way, groups, *_ = doctor.examine(host, walk, some)
        assert (way.verdict, groups.verdict) == ("ok", "limited")
        assert "1000:27:1" in groups.allow
