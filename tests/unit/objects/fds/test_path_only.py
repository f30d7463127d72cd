"""Names that are open with O_PATH: opened again without following or changing what they lead to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, opened
from torpor.objects.fds import descriptors

OPEN = "a = os.open({!r}, os.O_PATH | os.O_NOFOLLOW); ready(a=a)\nwait()\n"


def test_links_pipes_and_devices_come_back_as_names(acting: Acting) -> None:
    def body(folder: Path) -> None:
        (folder / "link").symlink_to("nowhere")
        os.mkfifo(folder / "pipe")
        for path in (folder / "link", folder / "pipe", Path("/dev/null")):
            fds, image = dumped(OPEN.format(str(path)))
            with opened(image) as woken:
                slot = woken(fds["a"])
                assert fcntl.fcntl(slot, fcntl.F_GETFL) & os.O_PATH
                assert os.fstat(slot).st_ino == os.lstat(path).st_ino
        (folder / "link").unlink()
        (folder / "pipe").unlink()

    acting(body)


def test_a_name_that_leads_to_something_else_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    _, image = dumped(OPEN.format(str(link)))
    link.unlink()
    link.write_text("no link")
    (reason,) = descriptors.validate(image)
    assert str(link) in str(reason)
