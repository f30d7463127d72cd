"""Devices, memory files, eventfds, the restorer's own descriptors, and the story around them."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.objects.arguments import numbers
from tests.unit.objects.fds.descriptor_tree import Acting, acting_as, dumped, holder, opened
from tests.users import User
from torpor.arch.x86_64 import NR
from torpor.errors import CheckpointFailed, NotPermitted, Refused
from torpor.image.image_pb2 import Description, Process, RegularFile, Tree
from torpor.objects.fds import descriptors, placement
from torpor.objects.fds.descriptors import Opened
from torpor.objects.fds.made_in_process import MadeInProcess
from torpor.objects.paths import inode_search
from torpor.remote.sys import syscall


def test_devices(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(
            """
n, z, u = (os.open("/dev/" + name, os.O_RDWR) for name in ("null", "zero", "urandom"))
ready(n=n, z=z, u=u)
wait()
"""
        )
        with opened(image) as woken:
            assert os.read(woken(fds["n"]), 4) == b""
            assert os.read(woken(fds["z"]), 4) == bytes(4)
            assert len(os.read(woken(fds["u"]), 4)) == 4
        index = next(i for i, d in enumerate(image.descriptions) if d.device.path == b"/dev/zero")
        image.descriptions[index].device.path = b"/dev/null"
        assert "is not the character device 1:5 here" in str(descriptors.validate(image))

    acting(body)


def test_eventfds_keep_their_count(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(
            """
a = syscall(NR.eventfd2, 0, os.O_NONBLOCK | os.O_CLOEXEC); os.write(a, struct.pack("Q", 1 << 40))
b = syscall(NR.eventfd2, 3, os.O_NONBLOCK | 1)
ready(a=a, b=b)
wait()
"""
        )
        with opened(image) as woken:
            assert int.from_bytes(os.read(woken(fds["a"]), 8), sys.byteorder) == 1 << 40
            with pytest.raises(BlockingIOError):
                os.read(woken(fds["a"]), 8)
            if "eventfd-semaphore" in Path(f"/proc/self/fdinfo/{woken(fds['b'])}").read_text():
                assert [os.read(woken(fds["b"]), 8)[0] for _ in range(3)] == [1, 1, 1]

    acting(body)


def test_standard_descriptors_are_the_restorers(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        fds, image = dumped("copy = os.dup(1)\nready(copy=copy)\nwait()", stderr=writer)
    finally:
        os.close(reader)
        os.close(writer)
    given = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(3)]
    try:
        with opened(image, stdio=given) as woken:
            for fd, number in ((0, 0), (1, 1), (2, 2), (fds["copy"], 1)):
                assert os.path.samestat(os.fstat(woken(fd)), os.fstat(given[number]))
        os.close(given[2])
        (reason,) = descriptors.validate(image, given)
        assert str(reason).startswith("descriptor 2: the program has it, and here it is closed")
    finally:
        os.close(given[0])
        os.close(given[1])


def test_a_terminal_is_the_restorers_three_times(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    told = tmp_path / "told"
    code = f"""
import termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
t = os.open("/dev/tty", os.O_RDWR)
c = os.dup(0)
sys.stdout = open({str(told)!r} + "~", "w")
ready(t=t, c=c)
os.rename({str(told)!r} + "~", {str(told)!r})
sys.stdout.close()
time.sleep(600)
"""
    try:
        with holder(code, stdin=slave, stdout=slave, stderr=slave) as tree:
            while not told.exists():
                assert tree.process.poll() is None
            assert tree.survey() == []
            image = tree.dump()
    finally:
        os.close(master)
        os.close(slave)
    by_fd = {entry.fd: image.descriptions[entry.description].outside for entry in image.processes[0].fds}
    assert [by_fd[fd].stdio for fd in (0, 1, 2, 3, 4)] == [0, 1, 2, 1, 1]
    assert "terminal /dev/pts/" in by_fd[1].was


REFUSED = {
    "userfaultfd": ("f = syscall(NR.userfaultfd, 1)", "what a userfaultfd watches cannot be read"),
    "netlink": (
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16); f = s.fileno()",
        "a netlink socket (generic)",
    ),
    "too large": (
        "f = os.open('gone', os.O_CREAT | os.O_RDWR); os.unlink('gone'); os.posix_fallocate(f, 0, (256 << 20) + 4096)",
        "256 MiB are more than",
    ),
    "renamed": (
        "f = os.open('x', os.O_CREAT); os.makedirs('d/e/f'); os.link('x', 'd/e/f/y'); os.unlink('x')",
        "it has lost this name",
    ),
    "pipe outside": ("f = os.dup(1); os.close(1); sys.stdout = open(f, 'w')", "its other end is outside"),
    "async": (
        "f, g = os.pipe(); fcntl.fcntl(f, fcntl.F_SETOWN, os.getppid())",
        "outside of the tree (F_SETOWN)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(acting: Acting, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, why = REFUSED[name]
    monkeypatch.setattr(inode_search, "MOST_OF_ALL", 0)  # another name of a file is too far away

    def body(tmp: Path) -> None:
        with holder(code + "\nready(f=f)\nwait()", cwd=tmp) as tree:
            fd = tree.ready()["f"]
            about = [reason for reason in tree.survey() if f", fd {fd} (" in reason.subject]
            assert any(why in reason.why for reason in about), tree.survey()
            assert f"process {tree.process.pid} (python" in about[0].subject
            with pytest.raises(Refused):
                tree.dump()

    acting(body)


def test_io_uring_is_refused() -> None:
    code = "b = ctypes.create_string_buffer(120); f = syscall(425, 2, ctypes.addressof(b))\nready(f=f)\nwait()"
    with holder(code, stderr=subprocess.DEVNULL) as tree:
        try:
            tree.ready()
        except ValueError:
            pytest.skip("no io_uring here")
        assert "the state of an io_uring cannot be read" in str(tree.survey())


def test_tables_that_are_shared_or_split_are_refused() -> None:
    with holder(
        """
import threading
def body():
    syscall(NR.unshare, 0x400)
    ready()
    time.sleep(600)
threading.Thread(target=body, daemon=True).start()
wait()
"""
    ) as tree:
        tree.ready()
        assert "it has descriptors of its own" in str(tree.survey())


def test_memory_files_lead_to_shared_memory(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            """
m = os.memfd_create("name", os.MFD_ALLOW_SEALING); os.write(m, b"0123456789")
r = os.open(f"/proc/self/fd/{m}", os.O_RDONLY); os.lseek(r, 3, 0)
fcntl.fcntl(m, 1033, 2)
ready(m=m, r=r)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            tree.stop()
            grabbed = descriptors.grab(tree.pids)
            (file,) = descriptors.memory_files(grabbed)
            assert (file.link, file.stat.st_size, file.attributes.seals) == (b"/memfd:name (deleted)", 10, 2)
            ours = file.open()
            assert os.pread(ours, 100, 0) == b"0123456789"
            os.close(ours)
            image = Tree()
            image.processes.add(pid=tree.process.pid)
            image.shared.add()
            asked = []
            descriptors.describe(grabbed, image, lambda dev, ino: asked.append((dev, ino)) or 0)  # type: ignore[func-returns-value]
            assert set(asked) == {(file.stat.st_dev, file.stat.st_ino)}
        memory = os.memfd_create("name")
        try:
            os.write(memory, b"ABCDEFGHIJ")
            with opened(image, shared=lambda index: memory) as woken:
                assert os.lseek(woken(fds["m"]), 0, os.SEEK_CUR) == 10
                assert os.read(woken(fds["r"]), 3) == b"DEF"
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.write(woken(fds["r"]), b"x")
        finally:
            os.close(memory)

    acting(body)


def test_placement_gives_a_process_its_numbers_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with holder(
        f"""
f = os.open({str(tmp_path / "f")!r}, os.O_RDONLY)
os.dup2(f, 100); os.dup2(f, 7, inheritable=False)
ready(f=f)
wait()
"""
    ) as tree:
        tree.ready()
        image = tree.dump()
    process, own = image.processes[0], MadeInProcess(image)
    with opened(image) as woken:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in placement.placing(process, own, woken.opened) + placement.closing(process, own):
                    assert call.ok(syscall(call.nr, *call.args)), call  # type: ignore[arg-type]
                table = os.listdir("/proc/self/fd")
                expected = {entry.fd: entry.cloexec for entry in process.fds}
                found = {int(fd): not os.get_inheritable(int(fd)) for fd in table if int(fd) in expected}
                status = 0 if found == expected and len(table) == len(expected) + 1 else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_a_target_that_has_ended_has_no_descriptors(acting: Acting) -> None:
    def body(_: Path) -> None:
        child = subprocess.Popen(["true"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert descriptors.grab([child.pid]).open_files == []
        assert descriptors.survey([child.pid]) == []
        child.wait()
        assert descriptors.survey([child.pid]) == []
        with pytest.raises(CheckpointFailed, match=f"process {child.pid} ended while it was saved"):
            descriptors.grab([child.pid])

    acting(body)


@pytest.mark.parametrize("fatal", ["open", "listdir"])
def test_a_process_that_ends_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch, fatal: str) -> None:
    child = subprocess.Popen(["sleep", "100"])
    calls = {name: getattr(os, name) for name in ("open", "listdir")}

    def ending(name: str, path: object, *flags: int) -> Any:
        """At the first look into its descriptors it ends: behind it when that opens them, before it when it reads."""
        result = calls[name](path, *flags) if name == "open" else None
        if name == fatal and child.returncode is None:
            child.kill()
            child.wait()
        return calls[name](path) if result is None else result

    with no_more_descriptors():
        for name in calls:
            monkeypatch.setattr(os, name, partial(ending, name))
        grabbed = descriptors.grab([child.pid], content=False)
        monkeypatch.undo()
    assert child.returncode == -signal.SIGKILL
    assert not grabbed.open_files


def test_a_target_that_is_not_ours_is_not_permitted(root_account: User, ordinary_account: User) -> None:
    with holder("ready(); wait()") as tree:
        tree.ready()

        def body() -> None:
            with pytest.raises(NotPermitted, match=f"process {tree.process.pid}"):
                tree.survey()

        acting_as(ordinary_account, body)


def test_a_hundred_processes_share_descriptors() -> None:
    with holder(
        """
kept = [os.pipe() for _ in range(5)]
for i in range(99):
    if os.fork() == 0:
        own = [os.pipe() for _ in range(2)]
        ready(); time.sleep(600)
ready()
wait()
"""
    ) as tree:
        for _ in range(100):
            tree.ready()
        tree.stop()
        grabbed = descriptors.grab(tree.pids)
        assert len(grabbed.by_reference) == 100 * 13 + 99 * 4
        assert len(grabbed.open_files) == 3 + 10 + 99 * 4
        for pid in tree.pids:
            os.kill(pid, signal.SIGCONT)


def test_the_hard_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with holder("ready(); wait()") as tree:
        tree.ready()
        image = tree.dump()
    image.processes[0].fds[0].fd = 1 << 30
    assert "this process may have" in str(descriptors.validate(image))


@pytest.mark.parametrize("seed", range(20))
def test_descriptors_that_are_in_each_others_way_are_placed(seed: int) -> None:
    """Slots may have the numbers of the descriptors themselves, in chains and in rings."""
    rng = random.Random(seed)
    slots = dict(enumerate(rng.sample(range(3, 60), 40)))
    fds = rng.sample(range(3, 60), 45)
    process = Process()
    for fd in fds:
        process.fds.add(fd=fd, description=rng.randrange(40), cloexec=rng.random() < 0.5)
    image = Tree(descriptions=[Description(file=RegularFile()) for _ in slots], processes=[process])
    table = {slot: (index, False) for index, slot in slots.items()}
    for call in placement.placing(process, MadeInProcess(image), Opened(slots)):
        if call.nr == NR.dup3:
            source, target, flags = numbers(*call.args)
            assert source != target
            table[target] = (table[source][0], bool(flags))
        else:
            fd, _, flags = numbers(*call.args)
            table[fd] = (table[fd][0], bool(flags))
    assert [table[entry.fd] for entry in process.fds] == [(one.description, one.cloexec) for one in process.fds]
    assert max(table) <= 60 + 8
