"""What test_proof.py has a user do: tries to end a program that could not be woken here, and sees that it lives on.

Runs as its own process, as the user whose rights are tested. Prints "done"; anything that is not as it should be
ends it with a traceback.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torpor
from torpor.arch.x86_64.xsave import IN_USE_OFFSET
from torpor.dump import proof
from torpor.errors import CheckpointFailed, Refused, RestoreFailed, TorporError
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects.fds import descriptors as kinds
from torpor.objects.process import seccomp
from torpor.objects.sockets import unix_names
from torpor.probe import probe
from torpor.store import SnapshotReader

WAITS = "128 "
"""rt_sigtimedwait() in /proc/PID/syscall: nothing wakes the program any more."""

PROGRAM = """
import fcntl, mmap, os, signal, socket, sys
shared = mmap.mmap(-1, 4096)
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
datagrams = socket.socket(type=socket.SOCK_DGRAM); datagrams.bind(("127.0.0.1", 0))
named = socket.socket(socket.AF_UNIX); named.bind(os.path.abspath("named")); named.listen()
named.setblocking(False)
hidden = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); hidden.bind("\\0hidden-%d" % os.getpid())
held = open("held", "w+"); fcntl.flock(held, fcntl.LOCK_EX)
bytes_held = open("bytes", "w+"); fcntl.lockf(bytes_held, fcntl.LOCK_EX)
broken = []
signal.signal(signal.SIGIO, lambda *_: broken.append(1))
with open("leased", "w"): pass
leased = open("leased"); fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_RDLCK)
os.mkfifo("fifo"); fifo = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
master, slave = os.openpty()
log = open("answers", "a", buffering=1)
def answer():
    try:
        named.accept()
        came = "somebody came"
    except BlockingIOError:
        came = "nobody came"
    print(came, len(broken), file=log)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # one that comes right before pause() would not end it
print("ready", file=log)
while True:
    signal.sigwaitinfo({signal.SIGUSR1})
    answer()
"""


def answers() -> list[str]:
    """What the program has said so far."""
    return Path("answers").read_text().splitlines() if Path("answers").exists() else []


def asked(pid: int) -> str:
    """What the program says of what has come to it: only one that runs says anything."""
    before, deadline = len(answers()), time.monotonic() + 100
    os.kill(pid, 10)
    while len(answers()) == before:
        assert time.monotonic() < deadline, "it does not answer"
        time.sleep(0.001)
    return answers()[-1]


@contextmanager
def program() -> Iterator[subprocess.Popen[bytes]]:
    """A program with one of everything that a living tree has and a restore must have."""
    nothing = subprocess.DEVNULL
    child = subprocess.Popen(
        ["/usr/bin/python3", "-c", PROGRAM], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    )
    deadline = time.monotonic() + 100
    while not answers():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def nobody_came(pid: int) -> None:
    assert asked(pid) == "nobody came 0"


def lives_on(pid: int, words: str, kind: type[TorporError] = Refused) -> None:
    """It is neither killed nor stopped, and no snapshot is listed."""
    for then in ("kill", "stop"):
        try:
            torpor.checkpoint(pid, store="store", then=then)
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"it is gone, and cannot be woken: {words}")
        nobody_came(pid)
        assert not torpor.Store("store").ids()


@contextmanager
def seen_as(change: Callable[[pb.Tree], None]) -> Iterator[None]:
    """What is read back is changed: for this host it is what another one's would be."""
    read = reading.read

    def changed(reader: SnapshotReader) -> pb.Tree:
        image = read(reader)
        change(image)
        return image

    with mock.patch.object(reading, "read", changed):
        yield


def changed(change: Callable[[pb.Tree], None], words: str, pid: int) -> None:
    with seen_as(change):
        lives_on(pid, words)


def wakes(child: subprocess.Popen[bytes]) -> None:
    """Nothing is in the way of the next try; what the tree had of its own was none."""
    snapshot = torpor.checkpoint(child.pid, store="store", then="kill")
    child.wait()
    job = torpor.restore(snapshot)
    nobody_came(job.tree_pid)
    job.send_signal(9)
    job.wait()


def on(host: dict[str, Any], words: str, pid: int) -> None:
    """The host is another than it was."""
    other = dataclasses.replace(probe(), **host)
    with mock.patch.object(proof, "probe", lambda: other):
        lives_on(pid, words)


def _set(path: str, value: Any) -> Callable[[pb.Tree], None]:
    """A change of one field, by its path; a list is given an element more."""

    def change(image: pb.Tree) -> None:
        message: Any = image
        *names, last = path.split(".")
        for name in names:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        if hasattr(getattr(message, last), "append"):
            getattr(message, last).append(value)
        else:
            setattr(message, last, value)

    return change


def _described(kind: str, field: str, value: Any) -> Callable[[pb.Tree], None]:
    """A change of the first description of a kind."""

    def change(image: pb.Tree) -> None:
        one = next(one for one in image.descriptions if one.WhichOneof("kind") == kind)
        setattr(getattr(one, kind), field, value)

    return change


def _another_build(image: pb.Tree) -> None:
    next(file for file in image.files if file.build_id).build_id = bytes(20)


def _lost_mount(image: pb.Tree) -> None:
    image.mounts.add(path=b"/nowhere", filesystem="nfs4", source="server:/nowhere")
    image.files[0].path = b"/nowhere/program"


def _orphan(image: pb.Tree) -> None:
    image.processes.add().CopyFrom(image.processes[0])


def _named_memory(image: pb.Tree) -> None:
    image.shared.add(kind=pb.SharedMemory.TMPFS, name=b"/elsewhere/memory")


def _filtered(image: pb.Tree) -> None:
    image.filters.add(code=bytes(8))
    image.processes[0].threads[0].filters.append(0)


def _user_id(image: pb.Tree) -> None:
    image.processes[0].credentials.uids[1] = 4321


def _another_vdso(image: pb.Tree) -> None:
    space = image.processes[0].memory
    space.vdso_content = bytes(len(space.vdso_content))


def _unknown_registers(image: pb.Tree) -> None:
    thread = image.processes[0].threads[0]
    thread.xstate = thread.xstate[:IN_USE_OFFSET] + struct.pack("<Q", 1 << 40) + thread.xstate[IN_USE_OFFSET + 8 :]


CASES: dict[str, Callable[[int], None]] = {
    "architecture": partial(changed, _set("host.architecture", "aarch64"), "the image is for aarch64"),
    "page_size": partial(changed, _set("host.page_size", 65536), "pages of 65536 bytes"),
    "processor": partial(on, {"cpu_flags": frozenset()}, "this processor: it lacks"),
    "register_sets": partial(changed, _unknown_registers, "register sets"),
    "no_vdso": partial(on, {"map_vdso": False}, "it cannot map a vDSO"),
    "sealed": partial(on, {"sealed_mappings": True}, "it seals the vDSO"),
    "no_capsule": partial(
        on,
        {
            "can_choose_pids": False,
            "user_namespaces": False,
            "lay_out_memory": False,
            "why": {"user_namespaces": "no namespaces"},
        },
        "no namespaces",
    ),
    "another_vdso": partial(changed, _another_vdso, "vDSO"),
    "mount": partial(changed, _lost_mount, "the file system /nowhere (nfs4 of server:/nowhere): it is not mounted"),
    "library_missing": partial(changed, _set("files.0.path", b"/nowhere/lib.so"), "/nowhere/lib.so: it cannot be open"),
    "library_changed": partial(changed, _another_build, "another build than the one in memory"),
    "shared_memory": partial(changed, _named_memory, "it does not lie in /dev/shm"),
    "file_missing": partial(changed, _described("file", "path", b"/nowhere/log"), "the file /nowhere/log: it cannot"),
    "no_fifo": partial(changed, _described("fifo", "path", b"/nowhere/fifo"), "the fifo /nowhere/fifo: it cannot"),
    "unix_directory": partial(changed, _described("unix", "name", b"/nowhere/name"), "/nowhere/name: its directory"),
    "device": partial(changed, _described("device", "path", b"/dev/nowhere"), "the device /dev/nowhere: it cannot"),
    "directory": partial(changed, _set("processes.0.cwd", b"/nowhere"), "the directory /nowhere: it is the current"),
    "contradiction": partial(changed, _set("processes.0.memory.exe", 1 << 20), "the image contradicts itself"),
    "no_order": partial(changed, _orphan, "two processes or threads with one id"),
}


def refused() -> None:
    """Whatever a restore refuses; and when nothing is in the way any more, the tree is killed and woken."""
    with program() as child:
        for name, case in CASES.items():
            print(name, file=sys.stderr)
            case(child.pid)
        with mock.patch.object(seccomp, "probe", lambda: dataclasses.replace(probe(), read_filters=False)):
            changed(_filtered, "which only root outside of a container can restore", child.pid)
        if os.geteuid():  # root gives any
            changed(_user_id, "it ran with the user ids", child.pid)
        wakes(child)


def descriptors() -> None:
    """A restore holds every description once besides the tree's own: more than this user may have open."""
    with program() as child:
        with mock.patch.object(kinds, "_most", lambda: 40):  # the tree has some twenty, a restore needs SPARE more
            lives_on(child.pid, "are needed at once to restore them")
        wakes(child)


def _no_time(image: pb.Tree) -> None:
    tcp = next(one.tcp for one in image.descriptions if one.HasField("tcp"))
    tcp.options.add(level=socket.IPPROTO_TCP, name=socket.TCP_KEEPIDLE, value=bytes(4))


def sockets() -> None:
    """What only shows when the sockets are made: an option that the kernel does not take, an error of the builder."""
    with program() as child:
        changed(_no_time, "option 6/4 cannot be set: Invalid argument", child.pid)
        with mock.patch.object(unix_names.Named, "bind_all", side_effect=RestoreFailed("it is not made")):
            lives_on(child.pid, "it is not made")
        wakes(child)


def taken_over() -> None:
    """A pack that an earlier snapshot wrote was changed on disk: what lay in it is written again."""
    with program() as child:
        torpor.checkpoint(child.pid, store="store")
        for pack in Path("store/packs").iterdir():
            pack.chmod(0o600)
            content = bytearray(pack.read_bytes())
            content[4096:] = bytes(byte ^ 1 for byte in content[4096:])
            pack.write_bytes(content)
        wakes(child)


def unreadable() -> None:
    """What was written does not come back from the disk."""
    with program() as child, mock.patch.object(SnapshotReader, "verify_blocks", _bad):
        lives_on(child.pid, "cannot be read back", CheckpointFailed)


def _bad(reader: SnapshotReader, indexes: Any) -> None:
    raise reader._changed(0)


def nowhere_at_all() -> None:
    """A host that can wake nothing is told before anything is frozen."""
    other = dataclasses.replace(probe(), map_vdso=False)
    with program() as child:
        deadline = time.monotonic() + 100
        while not Path(f"/proc/{child.pid}/syscall").read_text().startswith(WAITS):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        before = Path(f"/proc/{child.pid}/status").read_text().split("voluntary")[1]
        with mock.patch.object(proof, "probe", lambda: other):
            try:
                torpor.checkpoint(child.pid, store="store", then="kill")
            except Refused as error:
                assert "it cannot map a vDSO" in str(error)
        with mock.patch.object(proof, "probe", side_effect=OSError(errno.EIO, "Input/output error")):
            try:
                torpor.checkpoint(child.pid, store="store", then="kill")
            except CheckpointFailed as error:
                assert f"process {child.pid} could not be saved: Input/output error" in str(error)
        assert Path(f"/proc/{child.pid}/status").read_text().split("voluntary")[1] == before
        assert not Path("store").exists()


def costs() -> None:
    """What the proof took is told apart."""
    stats = torpor.Stats()
    with program() as child:
        torpor.checkpoint(child.pid, store="store", stats=stats)
        assert 0 < stats.pause_ns < stats.total_ns
        assert stats.proof_ns == 0
        torpor.checkpoint(child.pid, store="store", then="kill", stats=stats)
        assert 0 < stats.proof_ns < stats.total_ns


if __name__ == "__main__":
    socket.setdefaulttimeout(100)
    globals()[sys.argv[1]]()
    print("done")
