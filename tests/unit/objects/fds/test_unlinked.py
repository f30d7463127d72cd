"""Files without a name: their content is in the image, if it can be read in the time that a process stands still."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, FdReference, dumped, holder
from torpor.objects.fds import descriptors, unlinked
from torpor.objects.fds.unlinked import Unlinked

GONE = "f = os.open('file', os.O_RDWR | os.O_CREAT); os.write(f, b'content'); os.unlink('file')\n"


def whys(tree: FdReference) -> list[str]:
    return [reason.why for reason in tree.survey()]


def test_it_is_memory_of_the_image(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with holder(GONE + "os.lseek(f, 2, 0); ready(f=f)\nwait()", cwd=tmp) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            tree.stop()
            found = descriptors.grab(tree.pids)
            (file,) = descriptors.memory_files(found)
            assert file.link == os.fsencode(tmp / "file (deleted)")
            fd = file.open()
            assert os.pread(fd, 100, 0) == b"content"
            os.close(fd)
            (open_file,) = found.of(Unlinked)
            assert (open_file.references[0].fd, open_file.position) == (fds["f"], 2)

    acting(body)


def test_one_that_has_a_name_again_is_a_file(tmp_path: Path) -> None:
    code = """
f = os.open('.', os.O_RDWR | os.O_TMPFILE)
syscall(NR.linkat, -100, b"/proc/self/fd/%d\\0" % f, -100, b"named\\0", 0x400)
"""
    try:
        os.close(os.open(tmp_path, os.O_RDWR | os.O_TMPFILE))
    except OSError as error:
        pytest.skip(f"no O_TMPFILE here: {error.strerror}")
    _, image = dumped(code + "ready(f=f)\nwait()", cwd=tmp_path)
    assert os.fsencode(tmp_path / "named") in {one.file.path for one in image.descriptions}


def test_what_takes_too_long_to_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlinked, "LARGEST", 1 << 20)
    sparse = "f = os.open('file', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 40); os.unlink('file')\n"
    with holder(sparse + "ready()\nwait()", cwd=tmp_path) as tree:
        tree.ready()
        assert tree.survey() == [], "holes cost nothing"
    large = GONE + "os.write(f, os.urandom(2 << 20)); os.fsync(f)\n"
    with holder(large + "ready()\nwait()", cwd=tmp_path) as tree:
        tree.ready()
        (why,) = whys(tree)
        assert "its 2 MiB are more than the 1 MiB" in why


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("f = os.open(f'/proc/self/fd/{f}', os.O_PATH)", "is open as a name only (O_PATH)"),
        ("fcntl.fcntl(f, fcntl.F_SETFL, os.O_DIRECT)", "direct access (O_DIRECT)"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, code: str, words: str) -> None:
    attempt = f"try: {code}\nexcept OSError: os._exit(77)\n"
    with holder(GONE + attempt + "ready()\nwait()", cwd=tmp_path) as tree:
        try:
            tree.ready()
        except ValueError:
            pytest.skip("this file system knows nothing of it")
        assert any(words in why for why in whys(tree))
