"""Under system-call filters: those that are over all of us, as in a container, and a program's own."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import PYTHON, build
from tests.conformance.harness import PATIENCE, Actor, Stage
from tests.conformance.test_refusals import REFUSED, refused
from tests.hosts import ERRNO, KILL, TRAP, under_filter, within
from tests.users import BIN
from torpor.arch.x86_64 import NR

HERE = Path(__file__).parent
CONFINED = HERE / "confined.py"
USER_NOTIF, TRACE = 0x7FC00000, 0x7FF00000
CONTAINER = under_filter({
    NR.userfaultfd: ERRNO | errno.EPERM,
    NR.get_mempolicy: ERRNO | errno.EPERM,
    NR.kcmp: ERRNO | errno.EPERM,
    NR.pidfd_getfd: ERRNO | errno.EPERM,
})  # fmt: skip
"""What default profiles of containers forbid of what a checkpoint calls."""
DONE_WITHOUT = (NR.userfaultfd, NR.close_range, NR.kcmp, NR.pidfd_getfd)
A_FEW = (
    "(left_running and user or user-capsule-1) and (tree.py or threads.c or asyncio_py.py or shared_tables.c)"
    " or (own_table or own_directory or shared_memory_process) and run"
)


def test_under_the_filter_of_a_container() -> None:
    """All that is over Torpor and the job alike is no hindrance: programs are kept as without."""
    chosen: list[str | Path] = ["-k", A_FEW, HERE / "test_conformance.py", HERE / "test_refusals.py"]
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = within(CONTAINER, BIN / "pytest", *options, *chosen)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def confined(host: str, *arguments: str) -> str:
    """What torpor says to a checkpoint under a filter (confined.py), whose program must not notice anything."""
    command = within(host, PYTHON, CONFINED, *arguments)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("answer", [KILL, TRAP], ids=["kill", "trap"])
@pytest.mark.parametrize("nr", [NR.ioprio_get, NR.close_range, NR.msgrcv, NR.rt_sigreturn])
def test_a_container_that_kills(nr: NR, answer: int) -> None:
    """What would kill the target is tried before, on a child of Torpor's own."""
    said = confined(under_filter({nr: answer}))
    assert said.startswith("Refused") and nr.name in said, said


@pytest.mark.parametrize(
    "nr", [NR.ioprio_get, NR.tgkill, NR.sched_getaffinity, NR.userfaultfd, NR.close_range, NR.kcmp, NR.pidfd_getfd]
)
def test_a_container_that_gives_errors(nr: NR) -> None:
    """A call that fails is done without, or the checkpoint is refused for want of its answer."""
    said = confined(under_filter({nr: ERRNO | errno.EPERM}))
    if nr in DONE_WITHOUT:
        assert said == "saved"
    else:
        assert said.startswith("Refused") and nr.name in said, said


@pytest.mark.parametrize("nr", [NR.process_vm_readv, NR.process_vm_writev, NR.ptrace])
def test_a_container_that_withholds_what_torpor_calls_itself(nr: NR) -> None:
    """The call is named, and not Yama, another user or a fault in Torpor."""
    said = confined(under_filter({nr: ERRNO | errno.EPERM}))
    assert said.startswith("NotPermitted") and f"this host does not let Torpor freeze anything: {nr.name}" in said, said


def test_as_many_filters_that_are_others(stage: Stage, user: Actor) -> None:
    """Torpor under a filter and a program under its own: who stands between them is under none."""
    with stage.play(HERE / "refused" / "seccomp.c", user) as subject:
        subject.wait_ready()
        said = confined(under_filter({}), str(subject.pid))
        assert said.startswith("Refused") and "may be others" in said and f"process {subject.pid} " in said, said
        subject.go()
        subject.judged()


HARMFUL = {
    f"{KILL:x} {NR.ioprio_get:d}": "kills it at ioprio_get",
    f"0 {NR.clone:d}": "kills its thread at clone",
    f"{TRAP:x} {NR.mmap:d}": "sends it SIGSYS at mmap",
    f"{ERRNO | errno.EPERM:x} {NR.prctl:d}": "gives an error at prctl",
    f"{TRACE:x} {NR.exit_group:d}": "asks a tracer at exit_group",
    f"{USER_NOTIF:x} {NR.mount:d}": "supervisor",
    "strict": "strict mode",
}


@pytest.mark.parametrize("arguments", HARMFUL)
def test_own_filters_that_would_do_harm(stage: Stage, root: Actor, arguments: str) -> None:
    """Root reads a filter, and makes no call that it would kill for, whatever the call's arguments."""
    program = build(HERE / "refused" / "seccomp.c", stage.programs)
    with stage.play([str(program), *arguments.split()], root) as subject:
        subject.wait_ready()
        error = refused(stage, subject, subject.pid, "run")
        assert (error.kind, error.exit_code) == ("Refused", REFUSED), error
        assert HARMFUL[arguments] in error.message, error.message
        assert any(f"process {pid} " in error.message for pid in observe.descendants(subject.pid)), error.message
        subject.go()
        subject.judged()
        assert subject.exited() == 0
