"""Descriptors are compared and copied where kcmp(2) and pidfd_getfd(2) are denied."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.leaks import no_more_descriptors
from torpor.remote import copies
from torpor.remote.children import forked, sleep_with
from torpor.remote.sys import pidfd_open

F_GETSIG, F_SETSIG = 11, 10
BEFORE_LINUX_6_10 = 9999


def file_of(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


KINDS: dict[str, Callable[[Path], int]] = {
    "file": lambda folder: file_of(folder / "file"),
    "directory": lambda folder: os.open(folder, os.O_RDONLY),
    "null": lambda _: os.open(os.devnull, os.O_RDWR),
    "socket": lambda _: socket.socket(socket.AF_UNIX).detach(),
    "eventfd": lambda _: os.eventfd(0),
}


@pytest.fixture(params=[copies._F_DUPFD_QUERY, BEFORE_LINUX_6_10], ids=["asked", "before 6.10"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_F_DUPFD_QUERY", request.param)


@pytest.fixture
def opened() -> Iterator[Callable[[int], int]]:
    with ExitStack() as stack:

        def closing(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        yield closing


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 5, 64])
def test_two_of_one_description_are_told_from_two_of_two(
    tmp_path: Path, opened: Callable[[int], int], kind: str, number: int
) -> None:
    one = opened(KINDS[kind](tmp_path))
    copy, other = opened(os.dup(one)), opened(KINDS[kind](tmp_path))
    for fd in (one, other):
        fcntl.fcntl(fd, F_SETSIG, number)
    assert copies.is_same(one, copy)
    assert not copies.is_same(one, other)
    assert [fcntl.fcntl(fd, F_GETSIG) for fd in (one, copy, other)] == [number] * 3


@pytest.mark.usefixtures("kernel")
def test_one_that_only_locates_a_file_has_nothing_to_share(tmp_path: Path, opened: Callable[[int], int]) -> None:
    one, other = (opened(os.open(tmp_path, os.O_PATH)) for _ in range(2))
    assert not copies.is_same(one, other)


def test_what_was_sent_is_copied(opened: Callable[[int], int]) -> None:
    """Within the block, and for the process that has sent it alone; our own are there anyway."""
    reader, writer = map(opened, os.pipe())
    me = os.getpid()
    child = forked(lambda: sleep_with(me))
    try:
        own, its = opened(pidfd_open(me)), opened(pidfd_open(child))
        with no_more_descriptors(), copies.sent_by(child, {7: os.dup(reader)}):
            for pidfd, number in ((its, 7), (own, reader)):
                copy = copies.copy_of(pidfd, number)
                assert copies.is_same(copy, reader) and not copies.is_same(copy, writer)
                assert not os.get_inheritable(copy)
                os.close(copy)
            for pid, number in ((child, 8), (child + 1, 7)):
                with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                    copies.ours(pid, number)
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                copies.copy_of(its, 8)
        assert not copies._sent
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
