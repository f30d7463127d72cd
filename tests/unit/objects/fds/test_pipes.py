"""Pipes: what lies in them, and how much has room."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from torpor.objects.fds import descriptors, pipes


def test_pipes_keep_content_capacity_and_flags_and_the_target_keeps_them_too(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            """
r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 18)
content = bytes(range(256)) * 800
os.write(w, content[:1]); os.write(w, content[1:])
os.set_blocking(r, False)
e, f = os.pipe()
ready(r=r, w=w, e=e, f=f)
wait()
print(os.read(r, 1 << 18) == content, flush=True)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            assert tree.go_on("") == "True"
        with opened(image) as woken:
            reader, writer = woken(fds["r"]), woken(fds["w"])
            assert fcntl.fcntl(reader, 1032) == 1 << 18
            assert os.read(reader, 1 << 20) == bytes(range(256)) * 800
            with pytest.raises(BlockingIOError):
                os.read(reader, 1)
            assert os.get_blocking(writer)
            os.write(writer, b"more")
            assert os.read(reader, 10) == b"more"
            os.write(woken(fds["f"]), b"e")
            assert os.read(woken(fds["e"]), 10) == b"e"

    acting(body)


def test_a_full_pipe_and_one_in_many_small_pieces() -> None:
    fds, image = dumped(
        """
r, w = os.pipe(); os.set_blocking(w, False)
os.write(w, bytes(1 << 16))
p, q = os.pipe2(os.O_DIRECT)
for i in range(16): os.write(q, bytes([i]) * (i + 1))
ready(r=r, w=w, p=p, q=q)
wait()
"""
    )
    with opened(image) as woken:
        with pytest.raises(BlockingIOError):
            os.write(woken(fds["w"]), b"x")
        assert os.read(woken(fds["r"]), 1 << 20) == bytes(1 << 16)
        assert [os.read(woken(fds["p"]), 1 << 16) for _ in range(16)] == [bytes([i]) * (i + 1) for i in range(16)]
        assert fcntl.fcntl(woken(fds["q"]), fcntl.F_GETFL) & os.O_DIRECT


def test_a_pipe_is_smaller_where_a_user_may_have_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    fds, image = dumped("r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 18); os.write(w, b'x' * 100)\nready(r=r)\nwait()")
    before = fcntl.fcntl

    def stingy(fd: int, command: int, argument: int = 0) -> int:
        if command == pipes.F_SETPIPE_SZ:  # as where pipe-user-pages-soft is used up
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return before(fd, command, argument)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", stingy)
        with opened(image) as woken:
            assert os.read(woken(fds["r"]), 1000) == b"x" * 100
            (warning,) = woken.opened.warnings
    assert "the capacity of a pipe is 65536 bytes, and was 262144" in warning


def test_named_pipes_keep_content_and_are_opened_by_name(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with holder(
            """
os.mkfifo("fifo")
r = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK); w = os.open("fifo", os.O_WRONLY); os.write(w, b"content")
os.mkfifo("alone"); a = os.open("alone", os.O_RDONLY | os.O_NONBLOCK)
ready(r=r, w=w, a=a)
wait()
""",
            cwd=tmp,
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            assert "is in use" in str(descriptors.validate(image))
        with opened(image) as woken:
            assert os.read(woken(fds["r"]), 100) == b"content"
            with pytest.raises(BlockingIOError):
                os.read(woken(fds["r"]), 1)
            os.write(woken(fds["w"]), b"more")
            assert os.read(woken(fds["r"]), 100) == b"more"
            assert os.get_blocking(woken(fds["w"]))
            with open(tmp / "alone", "wb") as other:
                other.write(b"knock")
                other.flush()
                assert os.read(woken(fds["a"]), 100) == b"knock"
        (tmp / "fifo").unlink()
        assert "make it again" in str(descriptors.validate(image))
        (tmp / "fifo").write_text("")
        assert "is not a named pipe any more" in str(descriptors.validate(image))

    acting(body)


def test_an_end_that_nobody_holds_stays_closed() -> None:
    fds, image = dumped(
        """
r, w = os.pipe(); os.write(w, b"last"); os.close(w)
p, q = os.pipe(); os.close(p)
ready(r=r, q=q)
wait()
"""
    )
    with opened(image) as woken:
        assert os.read(woken(fds["r"]), 10) == b"last"
        assert os.read(woken(fds["r"]), 10) == b""
        with pytest.raises(BrokenPipeError):
            os.write(woken(fds["q"]), b"x")


def test_an_end_that_was_opened_again_is_a_description_of_its_own() -> None:
    fds, image = dumped(
        """
r, w = os.pipe()
n = os.open(f"/proc/self/fd/{r}", os.O_RDONLY | os.O_NONBLOCK)
b = os.open(f"/proc/self/fd/{r}", os.O_RDWR)
ready(r=r, w=w, n=n, b=b)
wait()
"""
    )
    with opened(image) as woken:
        assert len(image.pipes) == 1
        assert [os.get_blocking(woken(fds[name])) for name in "rnwb"] == [True, False, True, True]
        os.write(woken(fds["b"]), b"12")
        assert os.read(woken(fds["n"]), 1) + os.read(woken(fds["r"]), 1) == b"12"


def test_grabbing_does_not_hold_back_the_end_of_a_pipe() -> None:
    with holder("r, w = os.pipe(); ready(r=r, w=w); wait()") as tree:
        tree.ready()
        tree.stop()
        grabbed = descriptors.grab(tree.pids)
        assert grabbed.open_files
        assert [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if fd.isdecimal() and os.path.exists(f"/proc/self/fd/{fd}")
        ].count(grabbed.open_files[-1].link) == 0
