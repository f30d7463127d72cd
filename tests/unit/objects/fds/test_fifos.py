"""Named pipes: their ends, what lies in them, and who else has them."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from torpor.errors import RestoreFailed
from torpor.objects.fds import descriptors

BOTH = """
os.mkfifo("fifo")
r = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK); w = os.open("fifo", os.O_WRONLY)
"""


def events(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return sum(found for _, found in poll.poll(0))


def test_both_ends_come_back_with_what_lies_between(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        fds, image = dumped(BOTH + "os.write(w, b'between')\nready(r=r, w=w)\nwait()", cwd=tmp)
        with opened(image) as woken:
            r, w = woken(fds["r"]), woken(fds["w"])
            assert os.read(r, 100) == b"between"
            os.write(w, b"more")
            assert os.read(r, 100) == b"more"
            assert not os.get_blocking(r) and os.get_blocking(w)
            other = os.open(tmp / "fifo", os.O_WRONLY | os.O_NONBLOCK)  # the name leads to it
            os.write(other, b"from outside")
            assert os.read(r, 100) == b"from outside"
            os.close(other)

    acting(body)


@pytest.mark.parametrize("wrote", [False, True])
def test_a_reader_without_a_writer_is_at_the_end_only_if_there_was_one(acting: Acting, wrote: bool) -> None:
    """Before there is a first writer, poll() waits."""

    def body(tmp: Path) -> None:
        end = "os.close(w)" if wrote else "os.close(w); os.close(r); r = os.open('fifo', os.O_RDONLY | os.O_NONBLOCK)"
        fds, image = dumped(f"{BOTH}{end}\nready(r=r)\nwait()", cwd=tmp)
        with opened(image) as woken:
            assert events(woken(fds["r"])) == (select.POLLHUP if wrote else 0)
            assert os.read(woken(fds["r"]), 1) == b""

    acting(body)


def test_one_whose_name_is_gone_comes_back_without_one(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        fds, image = dumped(BOTH + "os.write(w, b'x'); os.unlink('fifo')\nready(r=r, w=w)\nwait()", cwd=tmp)
        with opened(image) as woken:
            assert os.read(woken(fds["r"]), 10) == b"x"
            assert os.fstat(woken(fds["w"])).st_nlink == 0
        assert os.listdir(tmp) == [name for name in os.listdir(tmp) if name != "fifo"]

    acting(body)


def test_one_whose_name_another_has_is_refused(tmp_path: Path) -> None:
    with holder(BOTH + "ready(r=r, w=w)\nwait()", cwd=tmp_path) as tree:
        tree.ready()
        assert tree.survey() == []
        os.rename(tmp_path / "fifo", tmp_path / "away")
        os.link(tmp_path / "away", tmp_path / "kept")
        os.unlink(tmp_path / "away")
        os.mkfifo(tmp_path / "away")
        assert all("it cannot be opened again by its name" in reason.why for reason in tree.survey()) and tree.survey()


def test_one_that_others_use_is_left_to_them(tmp_path: Path) -> None:
    _, image = dumped(BOTH + "ready(r=r, w=w)\nwait()", cwd=tmp_path)
    assert descriptors.validate(image, (0, 1, 2)) == []
    both = os.open(tmp_path / "fifo", os.O_RDWR)
    os.write(both, b"theirs")
    with pytest.raises(RestoreFailed, match="is in use"), descriptors.open_all(image, shared=lambda index: -1):
        pass
    assert os.read(both, 100) == b"theirs"
    os.close(both)


def test_a_file_in_its_place_is_no_named_pipe(tmp_path: Path) -> None:
    _, image = dumped(BOTH + "ready(r=r, w=w)\nwait()", cwd=tmp_path)
    os.unlink(tmp_path / "fifo")
    found = {reason.why for reason in descriptors.validate(image, (0, 1, 2))}
    assert found == {"it cannot be opened: No such file or directory"}
    (tmp_path / "fifo").touch()
    assert {reason.why for reason in descriptors.validate(image, (0, 1, 2))} == {"it is not a named pipe any more"}
