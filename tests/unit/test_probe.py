"""What the probe finds on this host, and what it finds where something is withheld."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import UNDER_SECCOMP, WITHOUT_USER_NAMESPACES, within
from tests.leaks import no_more_descriptors
from tests.users import BIN, User
from torpor import trials
from torpor.probe import Probe, probe
from torpor.remote.children import forked, sleep_with


def doctor_in(host: str, user: User) -> dict[str, Any]:
    """What the doctor says, for programs, in a host that `host` makes; it must say that something is amiss, and that
    jobs are woken all the same, by a walk."""
    done = user.run(within(host, BIN / "torpor", "doctor", "--json"))
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["checkpoint"]
    assert not told["restore_rootless"]
    (told["finding"],) = (f for f in told["findings"] if f["name"] == "user_namespaces")
    assert told["finding"]["verdict"] == "limited"
    assert "jobs are woken natively only, after a walk" in told["finding"]["means"]
    return told


def test_probe_as_each_user(as_user: User) -> None:
    script = "import json, torpor.probe as p; print(json.dumps(vars(p.probe()), default=list))"
    found = json.loads(as_user.run([BIN / "python", "-c", script], check=True).stdout)
    assert found["uid"] == as_user.uid
    assert bool(found["capabilities"]) <= as_user.is_root
    assert found["trace_descendants"], found["why"]
    assert found["xsave_size"] > 512
    assert found["xfeatures"] & 3 == 3  # x87 and SSE, which every x86-64 has
    assert "sse2" in found["cpu_flags"]
    assert found["page_size"] == os.sysconf("SC_PAGE_SIZE")
    withheld = {name for name, value in found.items() if value is False} - set(found["why"])
    assert withheld <= {"sealed_mappings", "apparmor_restricts_userns", "unprivileged_userns_clone"}


def test_probe_leaves_nothing_and_changes_nothing() -> None:
    def spaces() -> list[str]:
        return [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))]

    probe()
    before = spaces()
    probe.cache_clear()
    with no_more_descriptors():
        probe()
    assert spaces() == before


def test_probe_in_a_process_with_threads_warns_of_nothing() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probe.cache_clear()
            assert probe().trace_descendants
    finally:
        stop.set()
        thread.join()


def test_what_a_child_told_before_it_was_killed_counts() -> None:
    def trial(report: trials.Report) -> None:
        report.tell("kcmp", True)
        report.attempt("set_tid", lambda: os.close(-1), "close")
        os.kill(os.getpid(), signal.SIGSYS)

    why: dict[str, str] = {}
    assert trials.in_children([trial], why) == {"kcmp": True, "set_tid": False}
    assert why == {"set_tid": "close: Bad file descriptor"}


def test_a_child_that_raises_never_runs_on(capfd: pytest.CaptureFixture[str]) -> None:
    def trial(report: trials.Report) -> None:
        raise RuntimeError("as a defect would")

    me = os.getpid()
    assert trials.in_children([trial], {}) == {}
    assert os.getpid() == me


def test_a_host_without_user_namespaces(as_user: User) -> None:
    finding = doctor_in(WITHOUT_USER_NAMESPACES, as_user)["finding"]
    assert "user.max_user_namespaces" in finding["allow"]
    assert finding["why"] == "unshare CLONE_NEWUSER: No space left on device"


def test_a_container_that_kills(as_user: User) -> None:
    told = doctor_in(UNDER_SECCOMP, as_user)
    assert told["probe"]["seccomp"] == 2
    assert "--security-opt seccomp=" in told["finding"]["allow"]
    assert told["probe"]["map_vdso"]  # told before, by another child


def test_made_up_hosts_say_what_they_can() -> None:
    nothing = Probe()
    assert not (nothing.can_checkpoint or nothing.can_restore_rootless or nothing.can_choose_pids)
    ready = Probe(
        user_namespaces=True,
        pid_namespaces=True,
        mount_proc=True,
        set_tid=True,
        set_mm_map=True,
        map_vdso=True,
    )
    assert ready.can_restore_rootless
    assert not Probe(**{**vars(ready), "sealed_mappings": True}).can_restore_rootless
    why = {"can_choose_pids": "not asked for", "mount_proc": "mount of /proc: no", "set_tid": "clone3: no"}
    masked = Probe(**{**vars(ready), "mount_proc": False, "set_tid": False, "why": why})
    assert masked.cannot_wake == "mount of /proc: no"


def test_masked_proc_is_read_from_the_mounts() -> None:
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert set(probe().masked_proc) <= points


def test_a_child_that_sleeps_with_its_parent_ends_where_that_has_ended_before_it_asked_for_a_signal() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    _, status = os.waitpid(forked(lambda: sleep_with(ended.pid)), 0)
    assert os.waitstatus_to_exitcode(status) == 0
