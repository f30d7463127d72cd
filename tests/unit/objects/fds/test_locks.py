"""Locks, and files without a name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, holder, opened
from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Lock, Tree
from torpor.objects.fds import descriptors, locks
from torpor.objects.fds.made_in_process import MadeInProcess


def test_locks_are_taken_again_by_whom_they_belong_to(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with holder(
            f"""
f = os.open({str(tmp / "f")!r}, os.O_CREAT | os.O_RDWR)
if os.fork() == 0:
    fcntl.flock(f, fcntl.LOCK_EX)
    os._exit(0)
os.wait()
g = os.open({str(tmp / "g")!r}, os.O_CREAT | os.O_RDWR); fcntl.flock(g, fcntl.LOCK_SH)
p = os.open({str(tmp / "p")!r}, os.O_CREAT | os.O_RDWR)
fcntl.lockf(p, fcntl.LOCK_EX, 10, 5); fcntl.lockf(p, fcntl.LOCK_SH, 0, 100)
ready(f=f, p=p, g=g)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            assert "another process has it locked" in str(descriptors.validate(image))
            with pytest.raises(RestoreFailed, match="another process has it locked"):
                descriptors.open_all(image, lambda index: -1)
        (process,) = image.processes
        (entry,) = [entry for entry in process.fds if entry.fd == fds["p"]]
        assert [(k.kind, k.exclusive, k.start, k.length) for k in entry.locks] == [
            (Lock.POSIX, True, 5, 10),
            (Lock.POSIX, False, 100, 0),
        ]
        (entry,) = [entry for entry in process.fds if entry.fd == fds["g"]]
        assert [(k.kind, k.exclusive) for k in entry.locks] == [(Lock.FLOCK_BY, False)], "the kernel names who took it"
        assert sorted(call.nr for call in MadeInProcess(image).restore_calls(process)) == [NR.fcntl, NR.fcntl, NR.flock]
        with opened(image), (tmp / "f").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)

    acting(body)


def test_what_proc_says_of_locks() -> None:
    lines = locks.lines(
        b"pos:\t0\nlock:\t1: POSIX  ADVISORY  WRITE 77 fe:00:12 0 EOF\n"
        b"lock:\t2: OFDLCK ADVISORY  READ  -1 fe:00:12 3 9\nlock:\t3: FLOCK  ADVISORY  WRITE 0 fe:00:12 0 EOF\n"
    )
    assert list(locks.unsupported(lines)) == []
    assert [(lock.kind, lock.exclusive, lock.start, lock.length) for lock in locks.parse(lines)] == [
        (Lock.POSIX, True, 0, 0),
        (Lock.OFD, False, 3, 7),
        (Lock.FLOCK, True, 0, 0),
    ]
    lease = b"lock:\t1: LEASE  ACTIVE    READ 77 fe:00:12 0 EOF"
    assert list(locks.unsupported([lease])) == []
    assert ([lock.kind for lock in locks.parse([lease])], locks.owner(b"LEASE", [lease])) == ([Lock.LEASE], 77)
    (broken,) = locks.unsupported([lease.replace(b"ACTIVE  ", b"BREAKING")])
    assert broken.passing and "is being broken" in broken.why
    (unknown,) = locks.unsupported([b"lock:\t1: NEWER  ADVISORY  READ 77 fe:00:12 0 EOF"])
    assert "a kind that is not known" in unknown.why


def test_locks_that_cannot_be_are_refused() -> None:
    image = Tree()
    description = image.descriptions.add(flags=os.O_RDONLY)
    description.directory.path = b"/"
    description.locks.add(kind=Lock.FLOCK, start=1 << 63, length=1 << 63)
    assert "it has invalid locks" in str(descriptors.validate(image))


def test_a_file_without_a_name_leads_to_shared_memory(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with holder(
            """
f = os.open("gone", os.O_CREAT | os.O_RDWR); os.write(f, b"content")
r = os.open("gone", os.O_RDONLY); os.unlink("gone")
t = os.open(".", os.O_TMPFILE | os.O_RDWR)
ready(f=f, r=r, t=t)
wait()
""",
            cwd=tmp,
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            image.shared.add()
            files = descriptors.memory_files(descriptors.grab(tree.pids))
            assert len(files) == 2
        memory = os.open(tmp, os.O_TMPFILE | os.O_RDWR)
        try:
            os.write(memory, b"content")
            with opened(image, shared=lambda index: memory) as woken:
                assert os.lseek(woken(fds["f"]), 0, os.SEEK_CUR) == 7
                assert os.read(woken(fds["r"]), 10) == b"content"
                assert fcntl.fcntl(woken(fds["r"]), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                os.write(woken(fds["t"]), b"again")
        finally:
            os.close(memory)

    acting(body)
