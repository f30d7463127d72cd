"""The search for a name of an inode: near the tree first, on its file system only, and not for ever."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from torpor.objects.paths import inode_search
from torpor.objects.paths.inode_search import Key


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inode_search, "_last", {})


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places that a tree uses."""
    places: list[str] = []
    monkeypatch.setattr(inode_search, "_near", lambda tree: places)
    return places


TREE: Any = None


def key(path: Path) -> Key:
    found = inode_search.key_of(os.fspath(path))
    assert found
    return found


def test_a_place_of_the_tree_itself_is_found_first(tmp_path: Path, near: list[str]) -> None:
    near += ["/nowhere", os.fspath(tmp_path)]
    asked: list[Key] = []

    def ask(one: Key, places: Collection[str]) -> str:
        asked.append(one)
        return ""

    assert inode_search.find([key(tmp_path)], TREE, ask) == {key(tmp_path): os.fspath(tmp_path)}
    assert not asked


def test_who_knows_is_asked_before_directories_are_searched(
    tmp_path: Path, near: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    near.append(os.fspath(tmp_path))
    (tmp_path / "file").touch()
    wanted = key(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", None)
        assert inode_search.find([wanted], TREE, lambda one, places: "/by/handle") == {wanted: "/by/handle"}


def test_it_is_found_below_and_then_remembered_while_it_is_there(tmp_path: Path, near: list[str]) -> None:
    near.append(os.fspath(tmp_path))
    path = tmp_path / "a" / "b" / "file"
    path.parent.mkdir(parents=True)
    path.touch()
    wanted = key(path)
    assert inode_search.find([wanted], TREE) == {wanted: os.fspath(path)}
    near.clear()
    assert inode_search.find([wanted], TREE) == {wanted: os.fspath(path)}, "without another search"
    moved = path.rename(tmp_path / "moved")
    assert inode_search.find([wanted], TREE) == {}
    near.append(os.fspath(tmp_path))
    assert inode_search.find([wanted], TREE) == {wanted: os.fspath(moved)}


def test_the_nearest_of_several_names_is_taken(tmp_path: Path, near: list[str]) -> None:
    far, close = tmp_path / "far" / "file", tmp_path / "close" / "file"
    for path in (far, close):
        path.parent.mkdir()
    far.touch()
    close.hardlink_to(far)
    near += [os.fspath(close.parent), os.fspath(tmp_path)]
    assert inode_search.find([key(far)], TREE) == {key(far): os.fspath(close)}


def test_another_file_system_is_not_searched(tmp_path: Path, near: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted" / "deep").mkdir(parents=True)
    near.append(os.fspath(tmp_path))
    seen: list[str] = []
    scandir, key_of = os.scandir, inode_search.key_of

    def looked(path: str) -> Any:
        seen.append(path)
        return scandir(path)

    def other(path: str) -> Key | None:
        found = key_of(path)
        return (found[0] + 1, found[1]) if found and "mounted" in path else found

    monkeypatch.setattr(os, "scandir", looked)
    monkeypatch.setattr(inode_search, "key_of", other)
    assert inode_search.find([(key(tmp_path)[0], 1)], TREE) == {}
    assert seen == [os.fspath(tmp_path)]


def test_a_search_ends(tmp_path: Path, near: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place has its share, so that a large one does not keep the others from being searched."""
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
        near.append(os.fspath(tmp_path / name))
    for number in range(30):
        folder = tmp_path / "large" / str(number)
        folder.mkdir()
        (folder / "x").touch()
    (tmp_path / "small" / "file").touch()
    (tmp_path / "large" / "29" / "deep").mkdir()
    monkeypatch.setattr(inode_search, "MOST", 32)
    monkeypatch.setattr(inode_search, "MOST_OF_ALL", 320)
    found = inode_search.find([key(tmp_path / "small" / "file"), (key(tmp_path)[0], 1)], TREE)
    assert list(found.values()) == [os.fspath(tmp_path / "small" / "file")]


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "unreadable"
    folder.mkdir(mode=0)
    yield folder
    folder.chmod(0o700)


def test_what_may_not_be_read_stops_no_search(tmp_path: Path, near: list[str], unreadable: Path) -> None:
    (tmp_path / "z").touch()
    near += [os.fspath(unreadable), os.fspath(tmp_path)]
    assert inode_search.find([key(tmp_path / "z")], TREE) == {key(tmp_path / "z"): os.fspath(tmp_path / "z")}
