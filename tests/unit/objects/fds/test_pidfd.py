"""Descriptors of processes: who opens them again, and which cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.objects.fds.descriptor_tree import Acting, holder
from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors, pidfd
from torpor.objects.fds.made_in_process import MadeInProcess
from torpor.objects.opening import O_LARGEFILE


def test_a_process_that_is_outside_or_gone_is_refused(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            f"""
a = os.pidfd_open({os.getpid()})
child = os.fork()
if child == 0: os._exit(0)
b = os.pidfd_open(child); os.waitpid(child, 0)
child = os.fork()
if child == 0: os._exit(0)
c = os.pidfd_open(child); os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
ready(a=a, b=b, c=c)
wait()
"""
        ) as tree:
            tree.ready()
            (outside,) = tree.survey()
            assert f"it leads to process {os.getpid()}, which is not in the tree" in outside.why

    acting(body)


def test_a_process_opens_its_pidfds_at_their_numbers() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR).pidfd.pid = 7
    image.descriptions.add(flags=os.O_RDWR).directory.path = b"/"
    process = image.processes.add(pid=7)
    for fd, description, cloexec in ((0, 1, False), (1, 0, False), (2, 0, True), (9, 0, False)):
        process.fds.add(fd=fd, description=description, cloexec=cloexec)
    calls = [(call.nr, call.expect) for call in MadeInProcess(image).opening(process)]
    assert calls == [(NR.pidfd_open, 1), (NR.fcntl, 0), (NR.dup3, 2), (NR.dup3, 9)]
    assert not list(MadeInProcess(image).restore_calls(process))


def test_the_first_process_that_has_a_pidfd_opens_it_and_leaves_it_to_the_others() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR | os.O_APPEND).pidfd.pid = 7
    image.descriptions.add(flags=os.O_RDWR).pidfd.pid = 8
    first, second = image.processes.add(pid=7), image.processes.add(pid=8)
    first.fds.add(fd=0, description=0)
    second.fds.add(fd=1, description=1, cloexec=True)
    second.fds.add(fd=5, description=0, cloexec=True)
    own = MadeInProcess(image, 9)
    assert [own.mailboxes(one) for one in (first, second)] == [{0: 1}, {0: 0}], "no number of their own"
    opening = [(call.nr, call.expect) for call in own.opening(first)]
    assert opening == [(NR.pidfd_open, 0), (NR.fcntl, 0), (NR.sendmsg, 1), (NR.fcntl, 0)]
    assert [(call.nr, call.expect) for call in own.opening(second)] == [(NR.pidfd_open, 1)]
    assert [(call.nr, call.args[0]) for call in own.restore_calls(first)] == [(NR.close, 1)]
    taking = [(call.nr, *call.args[:2]) for call in own.restore_calls(second) if call.nr != NR.recvmsg]
    assert taking == [(NR.dup3, 2, 5), (NR.close, 2), (NR.close, 0)]


def test_a_process_that_the_image_does_not_have_is_refused() -> None:
    image = Tree()
    for pid in (pidfd.NOBODY, 7, 8):
        image.descriptions.add(flags=os.O_RDWR).pidfd.pid = pid
    image.processes.add(pid=7)
    (reason,) = descriptors.validate(image)
    assert reason.why == "a descriptor leads to process 8, which is not in it"


def test_one_of_a_reaped_process_leads_to_who_stands_in() -> None:
    description = Tree().descriptions.add(flags=os.O_RDWR | os.O_NONBLOCK)
    description.pidfd.pid = pidfd.NOBODY
    assert [call.args for call in pidfd.opening(description, 3, 4, 99)] == [(99, os.O_NONBLOCK)]
    description.flags |= os.O_APPEND
    assert [call.nr for call in pidfd.opening(description, 3, 4, 99)] == [NR.pidfd_open, NR.fcntl]
    description.flags |= O_LARGEFILE
    calls = list(pidfd.opening(description, 3, 4, 99))
    assert [(call.nr, call.expect) for call in calls] == [
        (NR.pidfd_open, 3), (NR.open, 4), (NR.dup3, 3), (NR.close, 0),
    ]  # fmt: skip


def test_a_child_that_has_just_ended_counts_only_after_the_freeze() -> None:
    with holder(
        """
child = os.fork()
if child == 0: os._exit(0)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
ready(fd=os.pidfd_open(child)); wait()
"""
    ) as tree:
        tree.ready()
        assert tree.survey() == []
        tree.stop()
        grabbed = descriptors.grab(tree.pids)
        (open_file,) = grabbed.of(pidfd.Pidfd)
        assert [one.why for one in open_file.kind.unsupported(open_file, grabbed)]
