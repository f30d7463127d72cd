"""Devices without a state of their own: opened again by name, if the name leads to them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from torpor.image.image_pb2 import Tree
from torpor.objects.fds.devices import CharDevice

NULL = "a = os.open('/dev/null', os.O_RDWR | os.O_APPEND); b = os.open('/dev/urandom', os.O_RDONLY)\n"
by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")


def test_devices_come_back_with_their_flags(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(NULL + "ready(a=a, b=b)\nwait()")
        with opened(image) as woken:
            assert os.fstat(woken(fds["a"])).st_rdev == os.stat("/dev/null").st_rdev
            assert os.write(woken(fds["a"]), b"x") == 1
            assert len(os.read(woken(fds["b"]), 8)) == 8

    acting(body)


def image_of(path: Path | str, number: int) -> Tree:
    image = Tree()
    device = image.descriptions.add(flags=os.O_RDWR).device
    device.path, device.major, device.minor = os.fsencode(path), os.major(number), os.minor(number)
    image.processes.add(pid=5).fds.add(fd=3)
    return image


def reasons(image: Tree) -> list[str]:
    return [one.why for one in CharDevice().validate({0: image.descriptions[0]}, image, (0, 1, 2))]


def test_an_image_opens_no_device_that_has_a_state(tmp_path: Path) -> None:
    """Whatever its name and its number say."""
    null = os.stat("/dev/null").st_rdev
    assert reasons(image_of("/dev/null", null)) == []
    (why,) = reasons(image_of("/dev/zero", null))
    assert why == "the device /dev/zero is not the character device 1:3 here"
    tty = os.stat("/dev/tty").st_rdev
    (why,) = reasons(image_of("/dev/tty", tty))
    assert "is not the character device 5:0 here" in why
    (tmp_path / "file").touch()
    (why,) = reasons(image_of(tmp_path / "file", os.stat(tmp_path / "file").st_rdev))
    assert "is not the character device" in why
    (why,) = reasons(image_of(tmp_path / "nowhere", null))
    assert why == "it cannot be opened: No such file or directory"


@by_root
def test_a_device_whose_name_is_gone_is_refused(tmp_path: Path) -> None:
    name = tmp_path / "null"
    os.mknod(name, stat.S_IFCHR | 0o666, os.stat("/dev/null").st_rdev)
    try:
        os.close(os.open(name, os.O_RDWR))
    except PermissionError:
        pytest.skip("devices are not opened on this file system (nodev)")
    with holder(f"a = os.open({str(name)!r}, os.O_RDWR)\nready(a=a)\nwait()") as tree:
        tree.ready()
        assert tree.survey() == []
        name.unlink()
        (reason,) = tree.survey()
        assert reason.why == "its name does not lead to it here: No such file or directory"
