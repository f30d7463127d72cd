"""The files of unix sockets: found wherever they went, and again where they were."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from torpor.image import image_pb2 as pb
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.paths.file_names import is_makeshift
from torpor.objects.paths.opener import Opener, Openers, socket_path
from torpor.objects.sockets import addresses, unix_names, unix_paths
from torpor.objects.sockets.unix_paths import LONGEST, Bound, Place


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path: the name of a unix socket has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


def opener() -> Opener:
    return Openers(pb.Tree()).process(pb.Process())


@contextmanager
def bound(path: Path | str) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(path))
        yield sock


def found(name: bytes, inode: int, *directories: Path) -> Place:
    return unix_paths.find(name, inode & 0xFFFFFFFF, map(os.fsencode, directories), b"")


def test_names() -> None:
    assert unix_paths.of(b"/run/x\0\0") == b"/run/x"
    assert unix_paths.of(b"\0abstract\0") == b"\0abstract\0", "a zero byte belongs to an abstract name"
    assert unix_paths.printable(b"\0abstract") == "@abstract"
    assert unix_paths.printable(b"/run/x\0") == "/run/x"
    assert unix_paths.address(b"x") == (b"\x01\0x\0", 4)
    assert unix_paths.address(b"\0x") == (b"\x01\0\0x", 4)
    assert socket_path(UnixMessage(name=b"\0x")) == b""
    assert socket_path(UnixMessage(name=b"/x", moved=True, path=b"/y")) == b"/y"
    assert socket_path(UnixMessage(name=b"/x", moved=True)) == b""


def test_a_file_is_found_where_it_was_bound_or_was_moved_to(place: Path) -> None:
    path = place / "socket"
    with bound(path):
        inode = path.stat().st_ino
        name = os.fsencode(path)
        assert found(name, inode) == Place(name)
        assert found(b"socket", inode, place / "elsewhere", place) == Place(name, os.fsencode(place))
        path.rename(place / "moved")
        path.write_text("another file has the name now")
        assert found(name, inode) == Place(os.fsencode(place / "moved"))
        (place / "moved").unlink()
        assert found(name, inode) == Place(b"")
        assert unix_paths.find(name, inode, (), b"/by/the/kernel") == Place(b"/by/the/kernel")


def test_a_relative_name_is_found_also_through_links(place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    path = place / "real" / "socket"
    with bound(path):
        assert found(b"socket", path.stat().st_ino, place / "link").path == os.fsencode(path)


def test_the_kernel_knows_where_a_socket_is_bound(place: Path) -> None:
    path = place / "socket"
    with bound(path) as sock:
        if not (known := unix_paths.bound_path(sock.fileno())):
            pytest.skip("only root may ask (SIOCUNIXFILE)")
        assert known == os.fsencode(path)
        path.rename(place / "moved")
        assert unix_paths.bound_path(sock.fileno()) == os.fsencode(place / "moved")
        (place / "moved").unlink()
        assert unix_paths.bound_path(sock.fileno()) == b""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        assert unix_paths.bound_path(sock.fileno()) == b""


def test_directories_of_processes_that_have_ended_are_none() -> None:
    assert os.fsencode(os.getcwd()) in set(unix_paths.directories([os.getpid()]))
    assert list(unix_paths.directories([0x7FFFFFFF])) == []


def made(unix: UnixMessage) -> tuple[socket.socket, bytes, Bound]:
    """A listening socket that is bound as it was, and by which name it can be reached."""
    sock, all_bound = socket.socket(socket.AF_UNIX), Bound([])
    at = all_bound.bind(sock, unix, opener())
    sock.listen()
    return sock, at, all_bound


def name_of(sock: socket.socket) -> bytes:
    return unix_paths.of(addresses.local_name(sock.fileno())[2:])


def reaches(name: bytes, listener: socket.socket) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        unix_paths.connect(client, name)
        accepted, _ = listener.accept()
        accepted.close()
    return True


def test_a_socket_is_bound_again_where_it_was_with_its_mode(place: Path) -> None:
    path = os.fsencode(place / "socket")
    sock, at, all_bound = made(UnixMessage(name=path, mode=0o100666))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, "nobody else reaches it before it is settled"
    assert at == path and reaches(at, sock)
    all_bound.settle()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    assert name_of(sock) == path and all_bound.warnings == []
    all_bound.remove()
    assert os.listdir(place) == []
    sock.close()


@pytest.mark.parametrize("relative", [True, False])
def test_one_whose_file_was_moved_shows_its_old_name_and_is_at_the_new_one(place: Path, relative: bool) -> None:
    (place / "new").mkdir()
    name = b"socket" if relative else os.fsencode(place / "socket")
    unix = UnixMessage(
        name=name, moved=True, path=os.fsencode(place / "new" / "moved"), directory=os.fsencode(place), mode=0o700
    )
    sock, at, all_bound = made(unix)
    assert reaches(at, sock)
    all_bound.settle()
    assert name_of(sock) == name and all_bound.warnings == []
    assert sorted(os.listdir(place)) == ["new"] and os.listdir(place / "new") == ["moved"]
    assert reaches(unix.path, sock)
    sock.close()


def test_one_whose_file_is_gone_has_none_again(place: Path) -> None:
    for name in (os.fsencode(place / "socket"), b"socket", b"./deep/er/socket", b"s" * LONGEST):
        sock, at, all_bound = made(UnixMessage(name=name, moved=True))
        assert reaches(at, sock)
        all_bound.settle()
        assert name_of(sock) == name and all_bound.warnings == []
        assert os.listdir(place) == []
        sock.close()


def test_one_whose_name_another_file_has_keeps_off_it(place: Path) -> None:
    path = place / "socket"
    path.write_text("somebody else's")
    with pytest.raises(OSError, match="Address already in use"):
        made(UnixMessage(name=os.fsencode(path)))
    moved = UnixMessage(name=os.fsencode(path), moved=True, path=os.fsencode(place / "moved"))
    sock, at, all_bound = made(moved)
    assert reaches(at, sock)
    all_bound.settle()
    assert name_of(sock) == os.fsencode(path) and all_bound.warnings == []
    assert path.read_text() == "somebody else's" and sorted(os.listdir(place)) == ["moved", "socket"]
    assert reaches(moved.path, sock)
    sock.close()


def test_one_whose_directory_is_not_known_any_more_shows_its_old_name(place: Path) -> None:
    """The program has changed its directory since, and only the kernel knew where the file is."""
    (place / "d").mkdir()
    path = os.fsencode(place / "d" / "socket")
    sock, at, all_bound = made(UnixMessage(name=b"d/socket", moved=True, path=path, directory=os.path.dirname(path)))
    assert reaches(at, sock)
    all_bound.settle()
    assert name_of(sock) == b"d/socket" and all_bound.warnings == []
    assert os.listdir(place) == ["d"] and os.listdir(place / "d") == ["socket"]
    assert reaches(path, sock)
    sock.close()


def test_where_a_name_cannot_be_had_in_any_way_another_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bound, "_bound_below", lambda *_: False)
    path = place / "socket"
    path.write_text("somebody else's")
    sock, at, all_bound = made(UnixMessage(name=os.fsencode(path), moved=True, path=os.fsencode(place / "moved")))
    assert reaches(at, sock)
    all_bound.settle()
    (warning,) = all_bound.warnings
    assert warning == f"the unix socket {path} cannot get its name back, and shows another one"
    assert is_makeshift(name_of(sock)) and sorted(os.listdir(place)) == ["moved", "socket"]
    sock.close()


def test_a_failed_restore_leaves_no_name(place: Path) -> None:
    one, _, all_bound = made(UnixMessage(name=os.fsencode(place / "socket")))
    two = socket.socket(socket.AF_UNIX)
    all_bound.bind(two, UnixMessage(name=b"other", moved=True, directory=os.fsencode(place)), opener())
    all_bound.remove()
    assert os.listdir(place) == []
    one.close()
    two.close()


@pytest.mark.parametrize("moved", [False, True])
def test_a_name_as_long_as_a_name_can_be(place: Path, moved: bool) -> None:
    """One of 108 bytes has no zero at its end: the kernel takes no longer address."""
    name = os.fsencode(place) + b"/"
    name += b"n" * (LONGEST - len(name))
    path = os.fsencode(place / ("m" * 255)) if moved else b""
    sock, at, all_bound = made(UnixMessage(name=name, moved=moved, path=path))
    assert reaches(at, sock)
    all_bound.settle()
    assert name_of(sock) == name and all_bound.warnings == []
    here = path or name
    assert os.path.exists(here)
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        assert unix_names._lives(probe, here, os.stat(here).st_ino, opener())
    sock.close()
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        assert not unix_names._lives(probe, here, os.stat(here).st_ino, opener())
    all_bound.remove()


def test_abstract_names_have_no_file() -> None:
    name = b"\0torpor-test-" + os.urandom(8)
    sock, at, all_bound = made(UnixMessage(name=name))
    assert at == name == addresses.local_name(sock.fileno())[2:]
    assert reaches(name, sock)
    all_bound.settle()
    all_bound.remove()
    sock.close()
