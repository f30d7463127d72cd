"""Every description of a tree is grabbed once, whoever has it; what the kernel refuses is not taken for an end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.objects.fds.descriptor_tree import Acting, FdReference, holder
from torpor import procfs
from torpor.errors import CheckpointFailed
from torpor.objects import kind
from torpor.objects.fds import descriptors

TWO = """
import tempfile
a = tempfile.TemporaryFile(); b = os.dup(a.fileno()); c = os.open(f"/proc/self/fd/{a.fileno()}", os.O_RDWR)
if os.fork() == 0:
    ready(a=a.fileno()); wait(); os._exit(0)
ready(a=a.fileno(), b=b, c=c)
wait()
"""


def begun(tree: FdReference, processes: int) -> dict[str, int]:
    """Wait until that many have told; what the first one has."""
    told = [tree.ready() for _ in range(processes)]
    tree.pids.sort(key=lambda pid: pid != tree.process.pid)
    return next(one for one in told if one["pid"] == tree.process.pid)


def test_a_description_that_several_descriptors_have_is_one(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(TWO) as tree:
            fds = begun(tree, 2)
            tree.stop()
            grabbed = descriptors.grab(tree.pids)
            of = {who: id(open_file) for who, open_file in grabbed.by_reference.items()}
            parent, child = tree.pids
            mine, theirs = (kind.FdReference(pid, fds["a"]) for pid in (parent, child))
            assert of[mine] == of[theirs] == of[kind.FdReference(parent, fds["b"])]
            assert of[mine] != of[kind.FdReference(parent, fds["c"])], "the file is one, the descriptions are two"
            open_file = grabbed.by_reference[mine]
            assert set(open_file.references) >= {mine, theirs}

    acting(body)


def test_descriptors_in_a_queue_are_found_and_none_is_left_here() -> None:
    code = """
import array, tempfile
a, b = socket.socketpair()
file = tempfile.TemporaryFile(); number = file.fileno(); inode = os.fstat(number).st_ino
socket.send_fds(a, [b"here"], [number]); file.close()
ready(b=b.fileno(), inode=inode)
wait()
"""
    with holder(code) as tree:
        said = tree.ready()
        tree.stop()
        with no_more_descriptors():
            grabbed = descriptors.grab(tree.pids)
            (passed,) = (open_file for open_file in grabbed.open_files if open_file.under_way_to is not None)
            assert passed.stat.st_ino == said["inode"]
            assert passed.under_way_to is grabbed.by_reference[kind.FdReference(tree.pids[0], said["b"])]
            for open_file in grabbed.open_files:  # the content of a file without a name is read later
                if open_file.ours:
                    open_file.ours.close()


def test_a_process_that_has_ended_fails_a_save_and_no_survey() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert descriptors.survey([ended.pid]) == []
    with pytest.raises(CheckpointFailed, match=f"process {ended.pid} ended while it was saved"):
        descriptors.grab([ended.pid])


def test_mounts_that_cannot_be_read_do_not_hide_whom_a_file_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """They tell on which file systems to look. A tree that stands still has not ended: the save fails."""

    def none_left(_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    code = f"file = open('/proc/self/exe'); fcntl.fcntl(file, 10, {int(signal.SIGUSR1)})\nready()\nwait()"
    with holder(code) as tree:
        tree.ready()
        monkeypatch.setattr(procfs, "mounts", none_left)
        assert tree.survey() == []
        tree.stop()
        with pytest.raises((OSError, CheckpointFailed), match="Too many open files"):
            descriptors.grab(tree.pids)
