"""Counters on a kernel that does not show which of them are semaphores: it is tried, and nothing of that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

import torpor
from tests.unit.objects.fds.descriptor_tree import Acting, FdReference, holder
from torpor.errors import Refused
from torpor.image import reading
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import eventfd
from torpor.store import Store

COUNTS = (0, 1, 2, 3, 7, 2**32, eventfd.LARGEST)


@pytest.fixture(autouse=True)
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fdinfo shows is not known by that name."""
    monkeypatch.setattr(eventfd, "SHOWN", "what no kernel shows")


def saved(tree: FdReference, folder: Path) -> Tree:
    """The image of a process that runs on."""
    store = folder / "store"
    snapshot = torpor.checkpoint(tree.process.pid, store=store)
    with Store(store).open(snapshot.id) as reader:
        return reading.read(reader)


def kinds(image: Tree) -> dict[int, tuple[int, bool]]:
    """Count and kind of each counter, by its descriptor in the first process."""
    counters = {}
    for one in image.processes[0].fds:
        description = image.descriptions[one.description]
        if description.HasField("eventfd"):
            counters[one.fd] = (description.eventfd.count, description.eventfd.semaphore)
    return counters


def test_a_semaphore_is_told_from_a_counter(acting: Acting) -> None:
    def body(folder: Path) -> None:
        with holder(
            f"""
counters = [(semaphore, count, os.eventfd(0, semaphore)) for semaphore in (0, 1) for count in {COUNTS}]
for _, count, fd in counters:
    os.eventfd_write(fd, count)
def info():
    return [open(f"/proc/self/fdinfo/{{fd}}").read() for _, _, fd in counters]
before = info()
ready(counters=[(fd, count, semaphore) for semaphore, count, fd in counters])
wait()
ready(same=info() == before)
wait()
"""
        ) as tree:
            made = tree.ready()["counters"]
            for _ in range(2):
                image = saved(tree, folder)
                assert kinds(image) == {fd: (count, bool(semaphore)) for fd, count, semaphore in made}
            assert '"same": true' in tree.go_on("")

    acting(body)


def test_those_that_wait_see_nothing(acting: Acting) -> None:
    """A thread in read(2), one in epoll_wait(2), and what an edge-triggered epoll has told already."""

    def body(folder: Path) -> None:
        with holder(
            """
import threading
empty, watched, edge = os.eventfd(0), os.eventfd(0), os.eventfd(0, os.EFD_SEMAPHORE)
level, edges = select.epoll(), select.epoll()
level.register(watched, select.EPOLLIN)
edges.register(edge, select.EPOLLIN | select.EPOLLET)
got = []
threads = [
    threading.Thread(target=lambda: got.append(os.eventfd_read(empty))),
    threading.Thread(target=lambda: got.append(level.poll())),
]
for thread in threads:
    thread.start()
def waiting(thread):
    return open(f"/proc/self/task/{thread.native_id}/syscall").read().split()[0] in ("0", "232", "281")
while not all(map(waiting, threads)):
    time.sleep(0.001)
ready()
wait()
ready(got=got, edges=edges.poll(0))
os.eventfd_write(empty, 4)
os.eventfd_write(watched, 5)
for thread in threads:
    thread.join()
ready(last=sorted(map(str, got)))
wait()
"""
        ) as tree:
            tree.ready()
            saved(tree, folder)
            assert tree.go_on("").endswith('"got": [], "edges": []}')
            assert len(tree.ready()["last"]) == 2

    acting(body)


def test_a_counter_that_others_have_too_is_refused(acting: Acting) -> None:
    def body(folder: Path) -> None:
        with holder(
            """
import subprocess
shared = os.eventfd(1)
child = subprocess.Popen(["sleep", "1000"], pass_fds=[shared], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
ready(child=child.pid)
wait()
ready(count=os.eventfd_read(shared))
wait()
"""
        ) as tree:
            child = tree.ready()["child"]
            with pytest.raises(Refused) as refused:
                torpor.checkpoint(child, store=folder / "store")
            assert f"process {tree.process.pid} (python" in str(refused.value)
            assert "outside of the tree, has it open too" in str(refused.value)
            assert '"count": 1' in tree.go_on("")

    acting(body)


def test_a_counter_on_its_way_is_refused(acting: Acting) -> None:
    def body(folder: Path) -> None:
        with holder(
            """
one, other = socket.socketpair()
counter = os.eventfd(1)
socket.send_fds(one, [b"x"], [counter])
os.close(counter)
ready()
wait()
_, fds, _, _ = socket.recv_fds(other, 1, 1)
ready(count=os.eventfd_read(fds[0]))
wait()
"""
        ) as tree:
            tree.ready()
            with pytest.raises(Refused, match="it is in a socket's queue"):
                torpor.checkpoint(tree.process.pid, store=folder / "store")
            assert '"count": 1' in tree.go_on("")

    acting(body)
