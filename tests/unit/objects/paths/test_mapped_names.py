"""Mapped files that have lost the name under which they were mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from torpor import procfs
from torpor.objects.kind import GrabbedDescriptors
from torpor.objects.paths import inode_search, mapped_names
from torpor.objects.paths.mapped_names import MappedNames


def test_a_mapping_is_known_by_the_name_that_lasts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(procfs.PAGE))
    os.link(first, second)
    with open(first, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared, mmap.mmap(-1, procfs.PAGE) as nameless:
        first.unlink()
        assert len(shared) == len(nameless)
        names = MappedNames(GrabbedDescriptors([os.getpid()]))
        maps = procfs.mappings(os.getpid())
        found = [names.lasting(os.getpid(), mapping) for mapping in maps]
        assert [(one.start, one.inode) for one in found] == [(one.start, one.inode) for one in maps]
        changed = [(was.name, now.name) for was, now in zip(maps, found, strict=True) if was != now]
    assert changed == [(os.fsencode(first) + b" (deleted)", os.fsencode(second))]


def test_a_name_that_is_not_found_is_a_reason_or_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason, if the file is known to have one; a notice, if nobody tells."""
    first, second = tmp_path / "first", tmp_path / "folder" / "second"
    second.parent.mkdir()
    first.write_bytes(bytes(procfs.PAGE))
    os.link(first, second)
    monkeypatch.setattr(inode_search, "find", lambda *_, **__: {})
    with open(first, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        first.unlink()
        (mapping,) = (one for one in procfs.mappings(os.getpid()) if one.name.startswith(os.fsencode(first)))
        for status, reasons, notices in ((second.stat(), 1, 0), (None, 0, 1)):
            monkeypatch.setattr(MappedNames, "_status", lambda *_, status=status: status)
            names = MappedNames(GrabbedDescriptors([os.getpid()]))
            assert names.lasting(os.getpid(), mapping) == names.lasting(os.getpid(), mapping) == mapping
            assert (len(names.reasons), len(names.notices)) == (reasons, notices)
        second.unlink()
        monkeypatch.setattr(MappedNames, "_status", lambda *_: os.fstat(file.fileno()))
        names = MappedNames(GrabbedDescriptors([os.getpid()]))
        assert names.lasting(os.getpid(), mapping) == mapping
        assert not names.reasons + names.notices, "it has no name"
        assert len(shared)
    mapped_names._nowhere.clear()


@pytest.mark.parametrize(("executable", "found"), [(False, True), (False, False), (True, False)])
def test_of_private_mappings_data_is_searched_for_and_code_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executable: bool, found: bool
) -> None:
    """An upgrade removes many libraries, and old versions linked elsewhere do not last."""
    first, second = tmp_path / "first", tmp_path / "folder" / "second"
    second.parent.mkdir()
    first.write_bytes(bytes(procfs.PAGE))
    os.link(first, second)
    monkeypatch.setattr(MappedNames, "_status", lambda *_: None)
    searched: list[object] = []

    def find(keys: list[tuple[int, int]], *_: object, **__: object) -> dict[tuple[int, int], str]:
        searched.extend(keys)
        return {keys[0]: str(second)} if found else {}

    monkeypatch.setattr(inode_search, "find", find)
    monkeypatch.setattr(mapped_names, "_nowhere", set())
    prot = mmap.PROT_READ | (mmap.PROT_EXEC if executable else 0)
    with open(first, "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=prot) as private:
        first.unlink()
        names = MappedNames(GrabbedDescriptors([os.getpid()]))
        (mapping,) = (one for one in procfs.mappings(os.getpid()) if one.name.startswith(os.fsencode(first)))
        name = names.lasting(os.getpid(), mapping).name
        assert name == (os.fsencode(second) if found else mapping.name)
        assert bool(searched) is not executable
        assert len(names.notices) == (not executable and not found)
        assert len(private)
