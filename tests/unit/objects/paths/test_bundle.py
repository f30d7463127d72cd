"""Files that an image takes along: what is taken, and how they are put back without harm to what is there."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from torpor.errors import Refused, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory.own_pages import PageWriter
from torpor.objects.paths import bundle, file_content, own_places
from torpor.objects.paths.opener import Openers
from torpor.objects.paths.own_places import Made
from torpor.procfs import PAGE
from torpor.store import Store

CONTENT = b"content" * 1000


def described(*paths: Path, flags: int = os.O_RDONLY) -> pb.Tree:
    """An image of a process that has these files open."""
    image = pb.Tree()
    process = image.processes.add(pid=5)
    ids = [os.getuid()] * 4
    process.credentials.uids.extend(ids)
    process.credentials.gids.extend([os.getgid()] * 4)
    for number, path in enumerate(paths):
        process.fds.add(fd=number, description=number)
        status = os.lstat(path)
        file = image.descriptions.add(flags=flags).file
        file.path, file.size, file.mtime_ns = os.fsencode(path), status.st_size, status.st_mtime_ns
        file.dev, file.ino, file.blocks = status.st_dev, status.st_ino, max(status.st_blocks, 1)
    return image


def saved(store: Store, image: pb.Tree) -> None:
    """Take along all files of an image."""
    with store.writer("tree") as saver:
        with PageWriter(saver, lambda done, expected: None) as out:
            bundle.store(image, {}, None, out, bundle.Along(everything=True), frozen=True)
        saver.publish(b"", "")


def test_a_link_to_another_file_takes_nothing_along(store: Store, folder: Path) -> None:
    """Root saves a user's job, and the user swaps a directory for a link to a directory of root's meanwhile."""
    secret = folder / "of-root" / "file"
    path = folder / "of-user" / "file"
    for one in (secret, path):
        one.parent.mkdir()
        one.write_bytes(CONTENT)
        os.utime(one, ns=(5, 5))
    image = described(path)
    path.parent.rename(folder / "moved")
    path.parent.symlink_to(secret.parent)
    with pytest.raises(Refused, match="another file has its name"):
        saved(store, image)
    assert not image.bundles


def test_what_must_be_there_is_told(store: Store, folder: Path) -> None:
    paths = [folder / name for name in "abcd"]
    for path in paths:
        path.write_bytes(CONTENT)

    def told(image: pb.Tree, along: bundle.Along) -> list[str]:
        with store.writer("tree") as saver, PageWriter(saver, lambda done, expected: None) as out:
            return bundle.store(image, {}, None, out, along, frozen=True)

    many = ", ".join(map(str, paths[:3]))
    where = "not in the snapshot, and must be there at the wake"
    assert told(described(*paths[:1]), bundle.Along()) == [f"1 file is {where}: {paths[0]}"]
    assert told(described(*paths), bundle.Along()) == [f"4 files are {where}: {many}, ..."]
    assert told(described(*paths), bundle.Along(everything=True)) == []


def put_back(store: Store, image: pb.Tree) -> Made:
    with store.open("latest") as reader, Openers(image) as openers:
        return bundle.put_back(image, reader, openers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the job's files lie."""
    made = tmp_path / "job"
    made.mkdir()
    return made


def test_a_file_is_put_back_as_it_was_with_its_directories(store: Store, folder: Path) -> None:
    path = folder / "deep" / "deeper" / "file"
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o750)
    path.write_bytes(CONTENT)
    path.chmod(0o640)
    os.utime(path, ns=(5, 1_000_000_007))
    with suppress(OSError):  # not every file system has them
        os.setxattr(path, "user.tag", b"1")
    attributes = os.listxattr(path)
    image = described(path)
    saved(store, image)
    path.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    made = put_back(store, image)
    assert path.read_bytes() == CONTENT
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, 1_000_000_007)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert os.listxattr(path) == attributes
    assert os.listdir(path.parent) == ["file"], "no draft is left"
    made.remove()
    assert os.listdir(folder) == []


def test_what_is_there_is_never_replaced(store: Store, folder: Path) -> None:
    paths = [folder / name for name in ("file", "link", "directory")]
    for path in paths:
        path.write_bytes(CONTENT)
    image = described(*paths)
    saved(store, image)
    for path in paths:
        path.unlink()
    paths[0].write_bytes(b"another")
    paths[1].symlink_to("nowhere")
    paths[2].mkdir()
    made = put_back(store, image)
    assert made.undo == []
    assert paths[0].read_bytes() == b"another" and not paths[1].exists() and paths[2].is_dir()
    opener = Openers(image).path(os.fsencode(paths[1]))
    assert own_places.why_not_make(image, os.fsencode(paths[1]), opener) == "something else has its name"


def test_one_that_takes_the_name_meanwhile_keeps_it(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = folder / "a", folder / "b"
    for path in (first, second):
        path.write_bytes(CONTENT)
    image = described(first, second)
    saved(store, image)
    first.unlink()
    second.unlink()
    fill = file_content.fill

    def slowly(*arguments: object) -> None:
        fill(*arguments)  # type: ignore[arg-type]  # whatever it is given
        if first.exists():
            second.write_bytes(b"somebody else's")

    monkeypatch.setattr(bundle, "fill", slowly)
    with pytest.raises(RestoreFailed, match="what the job needs cannot be made again"):
        put_back(store, image)
    assert second.read_bytes() == b"somebody else's"
    assert os.listdir(folder) == ["b"], "what was put back already is taken away again, and so is the draft"


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: setattr(one, "size", 1 << 63),
        lambda one: setattr(one, "size", (1 << 64) - 1),
        lambda one: setattr(one, "size", 1 << 62),
        lambda one: setattr(one, "path", b"/proc/self/comm-not-there"),
    ],
)
def test_an_image_that_says_what_cannot_be_is_a_failure_in_words(
    store: Store, folder: Path, damage: Callable[[pb.Bundle], None]
) -> None:
    path = folder / "file"
    path.write_bytes(CONTENT)
    image = described(path)
    saved(store, image)
    path.unlink()
    (bundled,) = image.bundles
    damage(bundled)
    image.descriptions[0].file.path = bundled.path
    with pytest.raises(RestoreFailed):
        put_back(store, image)
    assert os.listdir(folder) == []
    with store.open("latest") as reader, pytest.raises(OSError):
        bundled.size = 1 << 63
        bundle.in_memory(bundled, reader)


def test_a_draft_that_a_killed_restore_left_is_taken_over_and_one_in_use_is_not(store: Store, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(CONTENT)
    image = described(path)
    saved(store, image)
    path.unlink()
    opener = Openers(image).path(os.fsencode(path))
    drafts: list[int] = []

    def left(_: object, draft: bytes, __: bytes) -> None:
        drafts.append(os.open(draft, os.O_RDWR))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(opener), "rename", left)
        patch.setattr(type(opener), "unlink", lambda *_: None)  # a kill leaves it
        with pytest.raises(KeyboardInterrupt):
            put_back(store, image)
    (name,) = os.listdir(folder)
    assert name.startswith(".torpor-")
    fcntl.flock(drafts[0], fcntl.LOCK_EX)
    with pytest.raises(RestoreFailed, match="another restore is putting the same file back"):
        put_back(store, image)
    os.close(drafts[0])
    put_back(store, image)
    assert os.listdir(folder) == ["file"] and path.read_bytes() == CONTENT


def test_why_a_file_cannot_be_put_back(folder: Path) -> None:
    path = folder / "gone" / "file"
    path.parent.mkdir()
    path.write_bytes(b"")
    image = described(path)
    path.unlink()
    path.parent.rmdir()
    opener = Openers(image).path(os.fsencode(path))
    name = os.fsencode(path)
    assert own_places.why_not_make(image, name, opener) == f"there is no directory {path.parent} to put it into"
    image.folders.add(path=os.fsencode(path.parent))
    assert own_places.why_not_make(image, name, opener) == ""


def test_a_file_that_changed_is_not_taken_and_one_that_grew_is(store: Store, folder: Path) -> None:
    changed, grown = folder / "changed", folder / "grown"
    for path in (changed, grown):
        path.write_bytes(CONTENT)
    image = described(changed, grown)
    with grown.open("ab") as file:
        file.write(b"appended since")
    os.utime(changed, ns=(0, 0))
    with pytest.raises(Refused) as refused:
        saved(store, image)
    (reason,) = refused.value.reasons
    assert reason.subject == f"the file {changed}" and reason.passing and "it changed during" in reason.why
    image = described(grown)
    image.descriptions[0].file.size = len(CONTENT)
    saved(store, image)
    assert [one.size for one in image.bundles] == [len(CONTENT)]
    grown.unlink()
    put_back(store, image)
    assert grown.read_bytes() == CONTENT


def test_a_lease_for_writing_is_not_broken(store: Store, folder: Path) -> None:
    path = folder / "leased"
    path.write_bytes(CONTENT)
    image = described(path)
    image.processes[0].fds[0].locks.add(kind=pb.Lock.LEASE, exclusive=True)
    with pytest.raises(Refused, match="lease for writing"):
        saved(store, image)


def test_files_of_the_kernel_and_names_only_are_not_taken(store: Store, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(CONTENT)
    image = described(Path("/proc/self/status"))
    saved(store, image)
    assert list(image.bundles) == []
    image = described(path, flags=os.O_PATH)
    saved(store, image)
    assert list(image.bundles) == []


def test_a_program_comes_back_in_memory(store: Store, folder: Path) -> None:
    path = folder / "program"
    path.write_bytes(b"#!" + CONTENT)
    path.chmod(0o755)
    image = described(path)
    saved(store, image)
    with store.open("latest") as reader:
        fd = bundle.in_memory(image.bundles[0], reader)
    try:
        assert os.pread(fd, PAGE * 10, 0) == b"#!" + CONTENT
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:program (deleted)"
    finally:
        os.close(fd)


def along(store: Store, image: pb.Tree, *patterns: str, frozen: bool = True) -> list[str]:
    """The names that are taken along for patterns, or the notices if there are any."""
    with store.writer("tree") as saver, PageWriter(saver, lambda done, expected: None) as out:
        told = bundle.store(image, {}, None, out, bundle.Along(patterns=patterns), frozen=frozen)
        notices = [text for text in told if "must be there" not in text]
    return notices or [os.path.basename(os.fsdecode(one.path)) for one in image.bundles]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [(("*.db",), ["a.db", "b.db"]), (("b*", "*.csv"), ["b.db", "c.csv"]), (("*/job/a*",), ["a.db"]), ((), [])],
)
def test_what_the_tree_writes_is_chosen_by_patterns(
    store: Store, folder: Path, patterns: tuple[str, ...], names: list[str]
) -> None:
    paths = [folder / name for name in ("a.db", "b.db", "c.csv")]
    for path in paths:
        path.write_bytes(CONTENT)
    assert along(store, described(*paths, flags=os.O_RDWR), *patterns) == names


def test_a_pattern_that_matches_nothing_is_told(store: Store, folder: Path) -> None:
    (folder / "a.db").write_bytes(CONTENT)
    told = ["no file that it has open for writing matches '*.db' (--with-files)"]
    assert along(store, described(folder / "a.db"), "*.db") == told, "it is only read"


def test_a_file_that_changes_while_it_is_read_is_read_again_under_the_freeze(store: Store, folder: Path) -> None:
    path = folder / "a.db"
    path.write_bytes(CONTENT)
    image = described(path, flags=os.O_RDWR)
    os.utime(path, ns=(1, 1))
    with pytest.raises(bundle.Changing, match=r"a\.db changed while it was read"):
        along(store, image, "*", frozen=False)
    del image.bundles[:]
    with pytest.raises(Refused, match="it changed during the checkpoint"):  # by others, since the tree stands still
        along(store, image, "*", frozen=True)


def test_writes_through_a_mapping_do_not_show(store: Store, folder: Path) -> None:
    path = folder / "a.db"
    path.write_bytes(CONTENT)
    image = described(path, flags=os.O_RDWR)
    file, was = image.files.add(), image.descriptions[0].file
    file.path, file.size, file.mtime_ns, file.dev, file.ino = was.path, was.size, was.mtime_ns, was.dev, was.ino
    image.processes[0].memory.vmas.add(start=0, end=PAGE, kind=pb.Vma.FILE_SHARED, file=0, may_write=True)
    with pytest.raises(bundle.Changing, match="mapped so that writes reach it"):
        along(store, image, "*", frozen=False)
    assert along(store, image, "*", frozen=True) == ["a.db"]
