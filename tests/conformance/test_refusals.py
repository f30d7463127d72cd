"""What cannot be kept is refused by name, all of it at once, and the target does not notice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import named
from tests.conformance.harness import Actor, EngineError, Stage, Subject, unchanged

HERE = Path(__file__).parent
REFUSED, NOT_FOUND, NOT_PERMITTED = 10, 11, 12  # torpor.errors

WORDS = {
    "aio.c": ["aio"],
    "deep.py": ["the path of its current directory is longer than the kernel shows"],
    "dispatch.c": ["dispatch"],
    "dnotify.c": ["dnotify"],
    "for_children.c": ["a new pid namespace", "another time namespace"],
    "held_back.py": ["it holds back what was written to it"],
    "in_flight.py": ["pidfd", "/status is on its way", "credentials", "nobody in the tree has that name"],
    "io_uring.c": ["io_uring", "idle"],
    "leased.py": ["it has a lease (F_SETLEASE), which reading it", "it has a lease (F_SETLEASE) and is mapped"],
    "many_signals.c": ["more than 10000 queued signals", "try again once it has received some"],
    "message_queue.c": ["1 messages lie in the POSIX message queue", "notifies process"],
    "namespace.c": ["namespace"],
    "namespace_file.py": ["a net namespace of this host"],
    "landlock.c": ["Landlock"],
    "leader_gone.c": ["main thread"],
    "no_code.c": ["writable and executable"],
    "not_yet.py": ["a netlink socket (generic)", "messages of the kernel wait", "24 bytes were sent on its connection"],
    "outsider.py": ["outside", "was not accepted yet whose", "data was sent on a connection to it"],
    "own_directory.c": ["thread", "current directory of its own"],
    "own_table.c": ["thread", "descriptors of its own"],
    "perf.c": ["counter"],
    "sealed.c": ["sealed"],
    "secrets.py": ["'disk:key' of the type logon", "keys of its own (its thread keyring)"],
    "segments.c": ["segments of its own (modify_ldt)"],
    "secret.c": ["secret memory"],
    "shared_memory_process.c": [
        "share their memory",
        "share one table of descriptors (clone(CLONE_FILES)), and neither is",
        "share their current directory",
    ],
    "shared_guard.c": ["guard region"],
    "seccomp.c": ["a system-call filter (seccomp)", "only root"],
    "system_v_others.c": ["semaphores", "message queue", "segment"],
    "traced.c": ["traced"],
    "typed.py": ["6 bytes that were typed", "1 bytes that were typed", "bytes that were written", "an end of file"],
    "uninterruptible.c": ["thread", "uninterruptible system call"],
    "urgent.py": ["urgent data is in its queue"],
    "userfault.c": ["userfaultfd"],
    "vdso_changed.c": ["moved its vDSO's code", "written into its vDSO", "the protection of its vDSO"],
}
"""What the refusal of each program must say; besides, it names the process, and every descriptor that the
program listed in a file `numbers`."""

PROGRAMS = sorted(path for path in (HERE / "refused").iterdir() if path.is_file())


def refused(stage: Stage, subject: Subject, pid: int, then: str) -> EngineError:
    """The error of a checkpoint that must be refused and leave everything as it was."""
    before = subject.settled()
    with pytest.raises(EngineError) as caught:
        stage.driver(subject.actor).checkpoint(pid, subject.directory / "store", then)
    unchanged(subject, before)
    store = subject.directory / "store"
    assert not [path for path in store.rglob("*") if path.is_file() and "manifest" in path.name]
    return caught.value


@pytest.mark.parametrize("then", ["run", "kill"])
@pytest.mark.parametrize("source", PROGRAMS, ids=lambda path: path.name)
def test_refused_by_name(stage: Stage, user: Actor, source: Path, then: str) -> None:
    """The refusal says which process holds what; the program goes on and is content."""
    with stage.play(source, user, rests=source.stem != "uninterruptible") as subject:
        subject.wait_ready()
        error = refused(stage, subject, subject.pid, then)
        assert (error.kind, error.exit_code) == ("Refused", REFUSED), error
        for word in WORDS[source.name]:
            assert word in error.message, f"{word!r} is not in {error.message!r}"
        named = {subject.pid, *observe.descendants(subject.pid)}
        assert any(f"process {pid} " in error.message for pid in named), error.message
        numbers = subject.directory / "numbers"
        for number in numbers.read_text().split() if numbers.exists() else ():
            assert f"fd {number} " in error.message, f"descriptor {number} is not in {error.message!r}"
        subject.go()
        subject.judged()
        assert subject.exited() == 0


def test_another_users_process(stage: Stage, user: Actor, root: Actor) -> None:
    """An ordinary user may not checkpoint root's process, and is told so."""
    with stage.play(named("static.c"), root) as subject:
        subject.wait_ready()
        with pytest.raises(EngineError) as caught:
            stage.driver(user).checkpoint(subject.pid, stage.base / "elsewhere", "run")
        assert caught.value.exit_code == NOT_PERMITTED, caught.value
        subject.go()
        subject.judged()


def test_no_such_process(stage: Stage, user: Actor) -> None:
    """A PID that nobody has is told as such."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with pytest.raises(EngineError) as caught:
        stage.driver(user).checkpoint(child, stage.driver(user).directory / "store", "run")
    assert caught.value.exit_code == NOT_FOUND, caught.value
