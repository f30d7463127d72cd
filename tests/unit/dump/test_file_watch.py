"""Which mapped files were not written since a tree was frozen."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.unit.remote.test_written import made
from torpor import procfs
from torpor.dump.file_watch import FileWatches
from torpor.objects.paths.same_file import key_of
from torpor.procfs import PAGE


@pytest.mark.parametrize("act", ["nothing", "read", "write", "map and write", "unmap"])
def test_a_file_that_was_written_by_a_mapping_is_known(tmp_path: Path, act: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    descriptor = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(descriptor, 8 * PAGE)
    also = mmap.mmap(descriptor, 8 * PAGE, prot=mmap.PROT_READ)
    os.close(descriptor)
    mapped[3 * PAGE] = 1  # the page is dirty: a write to it changes no time
    watches, watch = FileWatches(), made()
    assert watches.files_of(os.getpid(), procfs.mappings(os.getpid()), None)
    watches.begin(os.getpid(), watch, alone=True)
    if act == "read":
        assert mapped[3 * PAGE] + mapped[5 * PAGE] + also[PAGE] == 1
    elif act == "write":
        mapped[3 * PAGE] = 2
    elif act == "map and write":
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 8 * PAGE) as another:
            another[3 * PAGE] = 2
            assert key_of(path.stat()) not in watches.unwritten()
    elif act == "unmap":
        mapped.close()
    assert (key_of(path.stat()) in watches.unwritten()) is (act not in ("write", "unmap"))
    watches.close()
    assert key_of(path.stat()) not in watches.unwritten(), "nobody watches it any more"
    if act != "unmap":
        mapped[3 * PAGE] = 3


def test_what_is_only_read_need_not_be_watched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), PAGE, prot=mmap.PROT_READ) as mapped:
        own = [one for one in procfs.mappings(os.getpid()) if one.name == os.fsencode(path)]
        watches = FileWatches()
        assert mapped[0] == 0 and not watches.files_of(os.getpid(), own, None)
        assert watches.unwritten() == {key_of(path.stat())}
