"""Descriptors that send signals (F_SETOWN, F_SETSIG): to whom, and which, as each process sets it again."""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import signal_owners
from torpor.objects.fds.signal_owners import F_SETOWN_EX, F_SETSIG, GROUP, OWNER_EX, PROCESS

SOCKET = "a, b = socket.socketpair()\n"
TO_ITSELF = "fcntl.fcntl(a, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(a, 10, signal.SIGUSR1)\n"
ASYNC = "fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)\n"


def test_a_process_is_told_by_the_signal_that_it_chose(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(SOCKET + TO_ITSELF + ASYNC + "ready(a=a.fileno(), b=b.fileno())\nwait()\n")
        process = image.processes[0]
        calls = [call.args for call in signal_owners.restore_calls(process, image)]
        assert calls[0] == (fds["a"], F_SETSIG, signal.SIGUSR1)
        assert calls[1] == (fds["a"], F_SETOWN_EX, OWNER_EX.pack(PROCESS, process.pid))
        assert calls[2][:2] == (fds["a"], fcntl.F_SETFL) and len(calls) == 3

    acting(body)


def test_an_owner_outside_of_the_tree_is_refused() -> None:
    with holder(SOCKET + "fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())\nready()\nwait()\n") as tree:
        tree.ready()
        (reason,) = tree.survey()
        assert "outside of the tree (F_SETOWN)" in reason.why


def shared() -> Tree:
    """Two processes with one description, whose owner is the group of both."""
    image = Tree()
    image.descriptions.add().signal_owner.kind = GROUP
    image.descriptions[0].signal_owner.pid = 5
    for pid in (5, 6):
        process = image.processes.add(pid=pid, pgid=5)
        process.fds.add(fd=3, description=0)
        process.threads.add(tid=pid)
    return image


def test_only_the_first_process_sets_what_several_have() -> None:
    image = shared()
    first, second = (list(signal_owners.restore_calls(process, image)) for process in image.processes)
    assert [call.args[2] for call in first] == [OWNER_EX.pack(GROUP, 5)] and second == []


@pytest.mark.parametrize(
    ("kind", "pid", "number", "wrong"),
    [(GROUP, 5, 0, False), (GROUP, 6, 0, True), (PROCESS, 6, 64, False), (PROCESS, 6, 65, True), (PROCESS, 7, 0, True),
     (0, 6, 0, False), (0, 7, 0, True), (3, 5, 0, True), (PROCESS, 0, 1, False)],
)  # fmt: skip
def test_owners_of_an_image_are_in_it(kind: int, pid: int, number: int, wrong: bool) -> None:
    image = shared()
    owner = image.descriptions[0].signal_owner
    owner.kind, owner.pid, owner.signal = kind, pid, number
    assert bool(list(signal_owners.validate(image))) == wrong
