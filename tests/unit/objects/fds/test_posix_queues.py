"""POSIX message queues without messages: with their sizes; others' queues and messages are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, holder
from torpor.objects.fds import descriptors

OPEN = """
name = b"torpor-test-%d\\0" % os.getpid()
attributes = struct.pack("=qqqq32x", 0, 3, 100, 0)
q = syscall(NR.mq_open, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, attributes)
"""
REMOVE = "syscall(NR.mq_unlink, name)\n"


def test_an_empty_queue_is_described_with_its_sizes(acting: Acting) -> None:
    def body(_: Path) -> None:
        for removed in (True, False):
            before, after = (REMOVE, "") if removed else ("", REMOVE)
            with holder(OPEN + before + "ready(q=q)\nwait()\n" + after + "ready()\nwait()\n") as tree:
                fds = tree.ready()
                assert tree.survey() == []
                image = tree.dump()
                tree.go_on("")
            entry = next(one for one in image.processes[0].fds if one.fd == fds["q"])
            queue = image.descriptions[entry.description].queue
            assert (queue.most, queue.largest, queue.mode & 0o777, queue.removed) == (3, 100, 0o600, removed)
            assert descriptors.validate(image) == []
            queue.most = -1
            assert len(descriptors.validate(image)) == 1

    acting(body)


def test_messages_would_be_taken_out_by_reading_them() -> None:
    send = "syscall(242, q, b'text', 4, 0, 0)  # mq_timedsend(2)\n"
    with holder(OPEN + REMOVE + send + "ready(q=q)\nwait()\n") as tree:
        tree.ready()
        (reason,) = tree.survey()
        assert "1 messages lie in the POSIX message queue" in reason.why


@pytest.mark.parametrize("removed", [False, True])
def test_a_queue_that_another_process_has_too_is_refused(removed: bool) -> None:
    fork = "if os.fork() == 0:\n    time.sleep(1000)\n"
    before, after = (REMOVE, "") if removed else ("", REMOVE)
    with holder(OPEN + before + fork + "ready(q=q)\nwait()\n" + after + "ready()\nwait()\n") as tree:
        tree.ready()  # the child is no part of the tree
        (reason,) = tree.survey()
        assert "outside of the tree, has the POSIX message queue open" in reason.why
        tree.go_on("")


def test_a_lease_on_a_queue_is_refused_and_not_broken() -> None:
    lease = "fcntl.fcntl(q, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
    kept = "ready(kept=fcntl.fcntl(q, fcntl.F_GETLEASE) == fcntl.F_WRLCK)\nwait()\n"
    with holder(OPEN + REMOVE + lease + "ready(q=q)\nwait()\n" + kept) as tree:
        tree.ready()
        (reason,) = tree.survey()
        assert "it has a lease (F_SETLEASE)" in reason.why and reason.advice == "give the lease up"
        assert json.loads(tree.go_on(""))["kept"]
