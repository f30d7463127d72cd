"""Epoll: which description a watch belongs to, and what fires after a restore."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, no_memory, opened
from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors, epoll
from torpor.objects.fds.made_in_process import MadeInProcess


def watching(*watches: tuple[int, int]) -> Tree:
    """An eventfd for each watch and an epoll, whose watches lead to (description, number)."""
    image = Tree()
    for _ in watches:
        image.descriptions.add(flags=os.O_RDWR).eventfd.SetInParent()
    message = image.descriptions.add(flags=os.O_RDWR).epoll
    for description, number in watches:
        message.watches.add(fd=number, events=select.EPOLLIN, data=100 + description, description=description)
    process = image.processes.add(pid=1)
    for index in range(len(image.descriptions)):
        process.fds.add(fd=3 + index, description=index)
    return image


def test_epoll_fires_as_before(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(
            """
e = select.epoll(flags=select.EPOLL_CLOEXEC).fileno()
r, w = os.pipe()
n = syscall(NR.eventfd2, 0, 0)
def add(epfd, fd, events, data):
    event = ctypes.create_string_buffer(struct.pack("=IQ", events, data))
    syscall(NR.epoll_ctl, epfd, 1, fd, ctypes.addressof(event))
inner = syscall(NR.epoll_create1, 0)
outer = syscall(NR.epoll_create1, 0)
add(inner, r, select.EPOLLIN | select.EPOLLET, 0xDEADBEEFCAFEF00D)
add(inner, n, select.EPOLLIN | select.EPOLLONESHOT, 7)
add(outer, inner, select.EPOLLIN, 8)
ready(r=r, w=w, n=n, inner=inner, outer=outer)
wait()
"""
        )
        (inner,) = (
            d.epoll.watches
            for i, d in enumerate(image.descriptions)
            if i == next(e.description for e in image.processes[0].fds if e.fd == fds["inner"])
        )
        assert sorted(watch.data for watch in inner) == [7, 0xDEADBEEFCAFEF00D]
        with opened(image) as woken:
            outer_epoll, inner_epoll = (select.epoll.fromfd(os.dup(woken(fds[n]))) for n in ("outer", "inner"))
            with outer_epoll, inner_epoll:
                assert outer_epoll.poll(0) == []
                os.write(woken(fds["w"]), b"x")
                assert outer_epoll.poll(0) == [(8, select.EPOLLIN)]
                assert [events for _, events in inner_epoll.poll(0)] == [select.EPOLLIN]
                assert inner_epoll.poll(0) == [], "an edge is told once"
                os.write(woken(fds["n"]), (1).to_bytes(8, "little"))
                assert inner_epoll.poll(0) == [(7, select.EPOLLIN)]
                assert inner_epoll.poll(0) == [], "a one-shot watch fires once"

    acting(body)


def test_a_watch_lives_on_when_its_number_leads_elsewhere() -> None:
    fds, image = dumped(
        """
e = select.epoll()
r, w = os.pipe()
kept = os.dup(r)
e.register(r, select.EPOLLIN)
other, x = os.pipe()
os.dup2(other, r)
e.register(r, select.EPOLLOUT)
ready(e=e.fileno(), number=r, kept=kept, w=w, x=x)
wait()
"""
    )
    with opened(image) as woken:
        watches = image.descriptions[woken.index(fds["e"])].epoll.watches
        assert {(w.fd, w.description, w.events & (select.EPOLLIN | select.EPOLLOUT)) for w in watches} == {
            (fds["number"], woken.index(fds["kept"]), select.EPOLLIN),
            (fds["number"], woken.index(fds["number"]), select.EPOLLOUT),
        }
        with select.epoll.fromfd(os.dup(woken(fds["e"]))) as epoll:
            os.write(woken(fds["w"]), b"x")
            assert epoll.poll(0) == [(fds["number"], select.EPOLLIN)]


def test_the_watches_of_processes_that_share_an_epoll() -> None:
    with holder(
        """
e = select.epoll()
if os.fork() == 0:
    r, w = os.pipe()
    e.register(r, select.EPOLLIN)
    ready(r=r, w=w)
    time.sleep(600)
r, w = os.pipe()
ready(e=e.fileno())
wait()
"""
    ) as tree:
        tree.ready()
        tree.ready()
        assert tree.survey() == []
        image = tree.dump()
    child = tree.pids[1]
    with opened(image) as woken, select.epoll.fromfd(os.dup(woken(tree.fds["e"]))) as epoll:
        os.write(woken(tree.fds["w"], child), b"x")
        assert epoll.poll(0) == [(tree.fds["r"], select.EPOLLIN)]


def test_a_watch_on_what_is_only_outside_is_refused() -> None:
    ours, theirs = os.pipe()
    try:
        with holder(
            f"""
e = select.epoll()
e.register({ours}, select.EPOLLIN)
os.close({ours}); os.close({theirs})
ready(e=e.fileno())
wait()
""",
            pass_fds=(ours, theirs),
        ) as tree:
            tree.ready()
            assert f"watches what was descriptor {ours} and is open only outside" in str(tree.survey())
    finally:
        os.close(ours)
        os.close(theirs)


def test_waiting_for_stdin_needs_something_that_can_be_waited_for() -> None:
    with holder("e = select.epoll(); e.register(0, 1); ready(e=e.fileno()); wait()") as tree:
        tree.ready()
        image = tree.dump()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        (reason,) = descriptors.validate(image, (null, null, null))
        assert "waits for it with epoll" in reason.why
    finally:
        os.close(null)


def test_what_only_a_process_can_watch_must_be_in_one() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR).pidfd.pid = 7
    image.descriptions.add(flags=os.O_RDWR).epoll.watches.add(fd=3, description=0)
    process = image.processes.add(pid=7)
    process.fds.add(fd=3, description=0)
    assert "no process has what an epoll watches" in str(descriptors.validate(image))
    process.fds.add(fd=4, description=1)
    assert descriptors.validate(image) == []
    assert [call.nr for call in MadeInProcess(image).restore_calls(process)][-1] == NR.epoll_ctl


def test_each_of_several_watches_fires_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the slots have the numbers that are watched: a watch would overwrite what the next one needs."""
    for base in (descriptors.first_slot, lambda _: 40):
        monkeypatch.setattr(descriptors, "first_slot", base)
        image = watching((0, 42), (1, 40), (2, 43), (3, 41), (0, 44))
        with opened(image) as woken, select.epoll.fromfd(os.dup(woken(8))) as copy:
            assert copy.poll(0) == []
            for index in range(4):
                os.eventfd_write(woken(3 + index), 1)
                assert {data for data, _ in copy.poll(0)} == {100 + index}
                os.eventfd_read(woken(3 + index))


def test_a_watch_that_has_fired_once_stays_disarmed() -> None:
    image = watching((0, 3))
    image.descriptions[1].epoll.watches[0].events = select.EPOLLONESHOT
    with opened(image) as woken, select.epoll.fromfd(os.dup(woken(4))) as copy:
        os.eventfd_write(woken(3), 1)
        assert copy.poll(0) == []


def test_what_cannot_be_watched_is_named() -> None:
    """Only a changed image has such a watch: the kernel had not accepted it."""
    image = watching((0, 3))
    image.descriptions[0].file.path = b"/etc/hostname"
    image.descriptions[0].flags = os.O_RDONLY
    with pytest.raises(RestoreFailed, match="an epoll cannot watch the file /etc/hostname as descriptor 3"):
        descriptors.open_all(image, no_memory).close()


def test_a_watch_on_a_description_that_there_is_not_is_refused() -> None:
    image = watching((0, 3))
    image.descriptions[1].epoll.watches[0].description = 77
    assert [reason.why for reason in descriptors.validate(image)] == ["an epoll watches description 77: there is none"]


@pytest.mark.parametrize(
    ("parameters", "as_root", "as_user"),
    [
        ((200, 8, 0), True, True),
        ((200, 64, 0), True, True),
        ((200, 65, 0), True, False),
        ((200, 8, 1), True, False),
    ],
)
def test_busy_polling_that_takes_a_privilege(
    monkeypatch: pytest.MonkeyPatch, parameters: tuple[int, int, int], as_root: bool, as_user: bool
) -> None:
    image = watching()
    image.descriptions[0].epoll.busy_poll = epoll.PARAMETERS.pack(*parameters)
    for is_root, may in ((True, as_root), (False, as_user)):
        monkeypatch.setattr(procfs, "is_root", lambda it=is_root: it)
        assert (descriptors.validate(image) == []) == may


def test_parameters_of_another_length_are_refused() -> None:
    image = watching()
    image.descriptions[0].epoll.busy_poll = b"123"
    assert "its busy polling (EPIOCSPARAMS) needs a privilege" in str(descriptors.validate(image))


def test_a_signalfd_whose_number_has_changed_is_refused(acting: Acting) -> None:
    """Its process adds the watch itself, under the number that the signalfd has by now."""

    def body(_: Path) -> None:
        with holder(
            """
e = select.epoll()
s = syscall(NR.signalfd4, -1, bytearray(8), 8, 0)
e.register(s, select.EPOLLIN)
moved = os.dup(s); os.close(s)
ready(); wait()
"""
        ) as tree:
            tree.ready()
            (reason,) = tree.survey()
            assert "has another number by now" in reason.why
            assert reason.advice == "remove it from the epoll"

    acting(body)
