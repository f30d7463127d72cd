"""Files, directories, devices, memory files, eventfds, and the story around them."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.unit.descriptor_tree import acting_as, holder, opened
from tests.users import User
from torpor.errors import NotPermitted, Refused
from torpor.image.image_pb2 import Tree
from torpor.objects import descriptors, mounts
from torpor.remote.sys import syscall

Acting = Callable[[Callable[[Path], None]], None]


@pytest.fixture
def acting(as_user: User) -> Acting:
    """Runs the test's body as root and as an ordinary user, with a directory of theirs."""
    return lambda body: acting_as(as_user, partial(body, as_user.tmp))


def position(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_CUR)


def test_files_come_back_at_their_position_and_with_their_flags(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        log = tmp / "log"
        log.write_bytes(b"0123456789")
        with holder(
            f"""
a = os.open({str(log)!r}, os.O_RDWR); os.lseek(a, 4, 0)
b = os.dup(a); os.set_inheritable(b, True)
c = os.open({str(log)!r}, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_DSYNC)
d = os.open({str(log)!r}, os.O_RDONLY | os.O_NONBLOCK); os.lseek(d, 7, 0)
ready(a=a, b=b, c=c, d=d)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
        with log.open("ab") as file:
            file.write(b"grown")
        with opened(image) as woken:
            a, b, c, d = (woken(fds[name]) for name in "abcd")
            assert a == b, "a description that dup shared is one"
            assert len({a, c, d}) == 3
            assert (position(a), position(d)) == (4, 7)
            assert os.read(a, 3) == b"456"
            os.write(c, b"!")
            assert log.read_bytes() == b"0123456789grown!"
            flags = fcntl.fcntl(c, fcntl.F_GETFL)
            assert flags & os.O_APPEND and flags & os.O_DSYNC == os.O_DSYNC
            assert fcntl.fcntl(d, fcntl.F_GETFL) & os.O_NONBLOCK
        entries = {entry.fd: entry for entry in image.processes[0].fds}
        assert [entries[fds[name]].cloexec for name in "abcd"] == [True, False, True, True]

    acting(body)


def test_a_description_shared_by_fork_is_one(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        (tmp / "data").write_bytes(b"0123456789")
        with holder(
            f"""
shared = os.open({str(tmp / "data")!r}, os.O_RDONLY)
own = os.open({str(tmp / "data")!r}, os.O_RDONLY)
if os.fork() == 0:
    os.close(own)
    own = os.open({str(tmp / "data")!r}, os.O_RDONLY)
    ready(); signal.pause()
os.read(shared, 3)
ready(shared=shared, own=own)
wait()
"""
        ) as tree:
            tree.ready()
            tree.ready()
            fds = tree.fds
            image = tree.dump()
        first, second = (process.pid for process in image.processes)
        with opened(image) as woken:
            assert woken.index(fds["shared"], first) == woken.index(fds["shared"], second)
            assert woken.index(fds["own"], first) != woken.index(fds["own"], second)
            assert position(woken(fds["shared"])) == 3

    acting(body)


def _image_of_file(path: Path, code: str) -> Tree:
    with holder(f"f = os.open({str(path)!r}, {code})\nready(f=f)\nwait()") as tree:
        tree.ready()
        return tree.dump()


def test_a_file_that_is_missing_cut_or_replaced_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    image = _image_of_file(file, "os.O_RDWR); os.lseek(f, 50, 0")

    def reasons() -> str:
        return "\n".join(map(str, descriptors.check(image)))

    assert reasons() == ""
    os.truncate(file, 60)
    assert reasons() == "", "shorter, but not at the program's position"
    os.truncate(file, 40)
    assert "cut from 100 to 40 bytes, and the program is at byte 50" in reasons()
    (tmp_path / "new").write_bytes(b"y" * 80)
    os.rename(tmp_path / "new", file)
    assert "another file has taken its place: 80 bytes where there were 100" in reasons()
    (tmp_path / "new").write_bytes(b"y" * 120)
    os.rename(tmp_path / "new", file)
    assert reasons() == "", "as editors replace a file"
    file.unlink()
    assert str(file) in reasons() and "No such file" in reasons()
    os.mkfifo(file)
    assert "no regular file any more" in reasons()


def test_a_log_that_was_rotated_is_no_reason_to_refuse(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"x" * 100)
    image = _image_of_file(file, "os.O_WRONLY | os.O_APPEND); os.write(f, b'y'")
    os.truncate(file, 0)
    assert descriptors.check(image) == []


def test_files_the_restoring_user_may_not_open_are_refused(ordinary_account: User) -> None:
    file = ordinary_account.tmp / "root's"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    os.chown(file, 0, 0) if os.geteuid() == 0 else pytest.skip("needs root")
    image = _image_of_file(file, "os.O_RDONLY")

    def body() -> None:
        assert ["Permission denied" in str(reason) for reason in descriptors.check(image)] == [True]

    acting_as(ordinary_account, body)


def test_a_file_that_its_user_could_not_open_again_is_refused_in_time(ordinary_account: User) -> None:
    def body() -> None:
        with holder(
            "f = os.open('x', os.O_CREAT | os.O_RDWR, 0)\nready(f=f)\nwait()", cwd=ordinary_account.tmp
        ) as tree:
            tree.ready()
            (reason,) = tree.survey()
            assert reason.why == "it cannot be opened again by its name: this user may not"

    acting_as(ordinary_account, body)


def test_opening_never_changes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    image = _image_of_file(file, "os.O_RDWR")
    index = next(i for i, d in enumerate(image.descriptions) if d.WhichOneof("kind") == "file")
    image.descriptions[index].flags |= os.O_TRUNC
    assert "flags that cannot be" in str(descriptors.check(image))
    image.descriptions[index].flags &= ~os.O_TRUNC
    image.descriptions[index].flags |= os.O_CREAT
    image.descriptions[index].file.path = bytes(tmp_path / "new")
    assert descriptors.check(image)
    assert sorted(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"content"


def test_directories_and_names_only(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        for name in "abcdefgh":
            (tmp / name).touch()
        with holder(
            f"""
d = os.open({str(tmp)!r}, os.O_RDONLY | os.O_DIRECTORY)
p = os.open({str(tmp / "a")!r}, os.O_PATH)
os.listdir(d)
ready(d=d, p=p)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
        with opened(image) as woken:
            assert position(woken(fds["d"])) == image.descriptions[woken.index(fds["d"])].directory.position
            assert Path(f"/proc/self/fd/{woken(fds['d'])}").readlink() == tmp
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.read(woken(fds["p"]), 1)

    acting(body)


def test_devices(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            """
n, z, u = (os.open("/dev/" + name, os.O_RDWR) for name in ("null", "zero", "urandom"))
ready(n=n, z=z, u=u)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
        with opened(image) as woken:
            assert os.read(woken(fds["n"]), 4) == b""
            assert os.read(woken(fds["z"]), 4) == bytes(4)
            assert len(os.read(woken(fds["u"]), 4)) == 4
        index = next(i for i, d in enumerate(image.descriptions) if d.device.path == b"/dev/zero")
        image.descriptions[index].device.path = b"/dev/null"
        assert "is not the character device 1:5 here" in str(descriptors.check(image))

    acting(body)


def test_eventfds_keep_their_count(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            """
a = syscall(NR.eventfd2, 0, os.O_NONBLOCK | os.O_CLOEXEC); os.write(a, struct.pack("Q", 1 << 40))
b = syscall(NR.eventfd2, 3, os.O_NONBLOCK | 1)
ready(a=a, b=b)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
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
        with holder("copy = os.dup(1)\nready(copy=copy)\nwait()", stderr=writer) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
    finally:
        os.close(reader)
        os.close(writer)
    given = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(3)]
    try:
        with opened(image, stdio=given) as woken:
            for fd, number in ((0, 0), (1, 1), (2, 2), (fds["copy"], 1)):
                assert os.path.samestat(os.fstat(woken(fd)), os.fstat(given[number]))
        os.close(given[2])
        (reason,) = descriptors.check(image, given)
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


def test_a_regular_file_in_stdio_is_opened_again(tmp_path: Path) -> None:
    output = tmp_path / "slurm.out"
    with output.open("ab") as file, holder('os.write(2, b"hello\\n"); ready(); wait()', stderr=file) as tree:
        tree.ready()
        image = tree.dump()
    with opened(image) as woken:
        os.write(woken(2), b"again\n")
    assert output.read_bytes() == b"hello\nagain\n"


def test_a_file_that_lost_its_name_is_kept_by_another_one(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with holder(
            "f = os.open('x', os.O_CREAT | os.O_RDWR); os.link('x', 'y'); os.unlink('x'); ready(f=f); wait()", cwd=tmp
        ) as tree:
            f = tree.ready()["f"]
            assert tree.survey() == []
            image = tree.dump()
        with opened(image) as woken:
            assert os.path.samestat(os.fstat(woken(f)), os.stat(tmp / "y"))

    acting(body)


def test_what_was_changed_is_refused_but_may_be_taken_as_it_is(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        (tmp / "input").write_bytes(b"0123456789")
        (tmp / "log").write_bytes(b"0123456789")
        with holder(
            "f = os.open('input', os.O_RDONLY); g = os.open('log', os.O_RDONLY); ready(); wait()", cwd=tmp
        ) as tree:
            tree.ready()
            image = tree.dump()
        assert descriptors.check(image) == []
        with (tmp / "log").open("ab") as log:
            log.write(b"more")
        (tmp / "input").write_bytes(b"9876543210")
        (reason,) = descriptors.check(image)
        assert reason.changed and "input: it was changed since" in str(reason)

    acting(body)


def test_a_file_system_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    image = Tree()
    there = image.descriptions.add(flags=os.O_RDWR)
    there.file.path = os.fsencode(tmp_path / "scratch/run/output")
    image.mounts.add(path=os.fsencode(tmp_path / "scratch"), filesystem="nfs4", source="filer:/export")
    (reason,) = mounts.check(image)
    assert "scratch (nfs4 of filer:/export): it is not mounted here" in str(reason)
    (tmp_path / "scratch/run").mkdir(parents=True)
    (tmp_path / "scratch/run/output").touch()
    assert list(mounts.check(image)) == []


REFUSED = {
    "userfaultfd": ("f = syscall(NR.userfaultfd, 1)", "what a userfaultfd watches cannot be read"),
    "udp": (
        "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.connect(s.getsockname());"
        " s.shutdown(socket.SHUT_RD); f = s.fileno()",
        "it is shut down",
    ),
    "netlink": (
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); f = s.fileno()",
        "a netlink socket (routes) is not kept",
    ),
    "too large": (
        "f = os.open('gone', os.O_CREAT | os.O_RDWR); os.unlink('gone'); os.posix_fallocate(f, 0, (256 << 20) + 4096)",
        "256 MiB are more than",
    ),
    "renamed": (
        "f = os.open('x', os.O_CREAT); os.mkdir('d'); os.link('x', 'd/y'); os.unlink('x')",
        "it has no name any more",
    ),
    "own proc": ("f = os.open('/proc/self/stat', 0)", "it shows a process as it is now"),
    "fifo": (
        "os.mkfifo('p'); f = os.open('p', os.O_RDWR); os.unlink('p')",
        "it cannot be opened again by its name",
    ),
    "pipe outside": ("f = os.dup(1); os.close(1); sys.stdout = open(f, 'w')", "its other end is outside"),
    "async": (
        "f, g = os.pipe(); fcntl.fcntl(f, fcntl.F_SETFL, 0o20000)",
        "it sends a signal when",
    ),
    "name only": ("f = os.open('/dev/null', os.O_PATH)", "it is open as a name only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(acting: Acting, name: str) -> None:
    code, why = REFUSED[name]

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
            assert (file.link, file.stat.st_size, file.seals) == (b"/memfd:name (deleted)", 10, 2)
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
                assert position(woken(fds["m"])) == 10
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
    process = image.processes[0]
    with opened(image) as woken:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in descriptors.placement(process, image, woken.opened) + descriptors.closing(process):
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
        assert descriptors.grab([child.pid]).held == []
        assert descriptors.survey([child.pid]) == []
        child.wait()
        assert descriptors.grab([child.pid]).held == []

    acting(body)


def test_a_target_that_is_not_ours_is_not_permitted(root_account: User, ordinary_account: User) -> None:
    with holder("ready(); wait()") as tree:
        tree.ready()

        def body() -> None:
            with pytest.raises(NotPermitted, match=f"process {tree.process.pid}"):
                tree.survey()

        acting_as(ordinary_account, body)


def test_a_hundred_processes_are_grabbed_in_a_moment() -> None:
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
        begin = time.perf_counter()
        grabbed = descriptors.grab(tree.pids)
        took = time.perf_counter() - begin
        assert len(grabbed.by_holder) == 100 * 13 + 99 * 4
        assert len(grabbed.held) == 3 + 10 + 99 * 4
        assert took < 1, f"{took * 1e3:.0f} ms"
        print(f"{took * 1e3:.1f} ms for {len(grabbed.by_holder)} descriptors")
        for pid in tree.pids:
            os.kill(pid, signal.SIGCONT)


def test_the_hard_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with holder("ready(); wait()") as tree:
        tree.ready()
        image = tree.dump()
    image.processes[0].fds[0].fd = 1 << 30
    assert "this process may have" in str(descriptors.check(image))
