"""The store as its users see it: what goes in comes out, is found by name, and belongs to one user."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.store.store_content import BLOCK, files_of, load, random_blocks, save
from torpor.errors import ImageDamaged, NotFound, NotPermitted, StoreError
from torpor.store import Store, blocks, default_path, files, known
from torpor.store.manifest import ID, new_id


def test_what_goes_in_comes_out(store: Store) -> None:
    contents = [*random_blocks(3), b"short", os.urandom(4096), b"x" * 4097, os.urandom(3 << 20)]
    info = save(store, *contents, node="n1")
    assert store.snapshots() == [info]
    assert load(store) == contents
    assert (info.kind, info.tags, info.summary, info.damage) == ("tree", {"node": "n1"}, "a test", "")
    assert info.size == sum(map(len, contents)) + len(contents)
    assert store.verify() == []


def test_a_directory_with_other_files_is_no_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"is not a store, and is not empty \(it has 'thesis.tex'\)"):
        store.create()
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "slurm").mkdir()
    store.create()
    (tmp_path / "later").touch()
    store.create()
    store.check_exists()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([b"a", b"b" * 4095, b"c" * 4096, b"d" * 4097, b"e" * BLOCK]) | st.binary(min_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_any_blocks_in_any_number_of_calls_and_snapshots(
    tmp_path_factory: pytest.TempPathFactory, snapshots: list[list[bytes]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    for contents in snapshots:
        with store.writer("tree") as saver:
            for part in (contents[:2], contents[2:]):
                saver.add_blocks(memoryview(b"".join(part)), [len(content) for content in part])
            info = saver.publish(b"", "")
        with store.open(info) as reader:
            got = {reader.read_block(index) for index in range(len(reader.blocks))}
        assert got == set(contents)
        assert len(reader.blocks) == len(got)
    assert store.verify() == []


def test_blocks_start_on_pages_and_packs_end_on_one(store: Store) -> None:
    info = save(store, b"a", b"b" * 5000, b"c" * 4096, b"d")
    with store.open(info) as reader:
        assert [reader.block(index)[1:] for index in range(4)] == [
            (4096, 1),
            (8192, 5000),
            (16384, 4096),
            (20480, 1),
        ]
        pack = os.pread(reader.pack_fd(0), 1 << 20, 0)
    assert len(pack) == 24576
    assert pack[4096:8192] == b"a".ljust(4096, b"\0")
    assert pack[8192 + 5000 : 16384] == bytes(8192 - 5000)


def test_equal_blocks_are_stored_once_across_snapshots(store: Store) -> None:
    one, two, three = random_blocks(3)
    first = save(store, one, two, one, one)
    assert load(store) == [one, two, one, one]
    second = save(store, two, three, one)
    assert load(store) == [two, three, one]
    assert set(second.packs) == {first.id, second.id}
    assert second.written < 2 * BLOCK
    third = save(store, three, two)
    assert set(third.packs) == {first.id, second.id}, "nothing new: no pack of its own"
    assert len(os.listdir(os.path.join(store.path, "packs"))) == 2
    other_kind = save(store, one, kind="dask")
    assert other_kind.packs == (other_kind.id,)


def test_blocks_of_a_cut_or_missing_pack_are_written_again(store: Store) -> None:
    contents = random_blocks(2)
    first = save(store, *contents)
    pack = Path(store.path, "packs", f"{first.id}.pack")
    os.truncate(pack, 8192)
    save(store, *contents)
    assert load(store) == contents
    pack.unlink()
    third = save(store, *contents)
    assert first.id not in third.packs


def test_blocks_of_the_snapshot_before_are_taken_over(store: Store) -> None:
    one, two, three, four = random_blocks(4)
    with store.writer("tree") as saver:
        rows = saver.add_blocks(memoryview(one + two + one + three), [BLOCK] * 4)
        first = saver.publish(bytes(rows), "a test")
        before = saver.known()
    with store.writer("tree", known=before) as saver:
        assert saver.base is before
        again = saver.adopt([rows[3], rows[0], rows[3]])
        new = saver.add_blocks(memoryview(four + two), [BLOCK] * 2)
        again += saver.adopt([rows[1]])
        second = saver.publish(bytes([*again, *new]), "a test")
    assert load(store) == [three, one, three, two, four, two]
    assert set(second.packs) == {first.id, second.id}
    assert second.written < 2 * BLOCK
    store.remove(first.id)
    assert load(store) == [three, one, three, two, four, two]
    assert store.verify() == []


def test_only_packs_in_use_are_taken_over(store: Store) -> None:
    one, two = random_blocks(2)
    first = save(store, one)
    with store.writer("tree") as saver:
        rows = saver.add_blocks(memoryview(one + two), [BLOCK] * 2)
        second = saver.publish(bytes(rows), "a test")
        before = saver.known()
    assert set(second.packs) == {first.id, second.id}
    with store.writer("tree", known=before) as saver:
        third = saver.publish(bytes(saver.adopt(rows[1:])), "a test")
    assert third.packs == (second.id,)


def test_what_a_writer_knows_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MAX_KNOWN_BLOCKS", 5)
    old, new = random_blocks(4), random_blocks(3)
    save(store, *old)
    last = save(store, *new)
    again = save(store, *old, *new)
    assert set(again.packs) == {last.id, again.id}
    assert load(store) == [*old, *new]


def test_threads_write_at_the_same_time(store: Store) -> None:
    shared = random_blocks(4)
    parts = [[os.urandom(BLOCK) for _ in range(12)] + shared for _ in range(4)]
    got: dict[int, list[int]] = {}
    with store.writer("tree") as saver:

        def work(number: int) -> None:
            for start in range(0, 16, 4):
                part = parts[number][start : start + 4]
                data = bytearray(b"".join(part))
                got.setdefault(number, []).extend(saver.add_blocks(memoryview(data), [BLOCK] * 4))
                data[:] = bytes(len(data))  # the buffer is the caller's again

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        saver.publish(b"", "")
    with store.open("latest") as reader:
        assert len(reader.blocks) == 4 * 12 + 4
        for number, part in enumerate(parts):
            assert [reader.read_block(index) for index in got[number]] == part


def test_short_writes_and_more_pieces_than_one_call_takes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    calls: list[int] = []

    def short(fd: int, pieces: list[memoryview], offset: int) -> int:
        calls.append(len(pieces))
        first = pieces[0]
        half = first[: max(1, first.nbytes // 2)]
        return real(fd, [half] if len(calls) % 2 else pieces, offset)

    monkeypatch.setattr(os, "pwritev", short)
    contents = [number.to_bytes(3, "little") for number in range(3000)]
    with store.writer("tree") as saver:
        saver.add_blocks(memoryview(b"".join(contents)), [3] * 3000)
        saver.publish(b"", "")
    assert max(calls) == files.MAX_PIECES
    with store.open("latest") as reader:
        assert [reader.read_block(index) for index in range(3000)] == contents


def test_more_than_one_call_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_WRITE", 10)
    content = os.urandom(95)
    with open(tmp_path / "file", "wb") as file:
        files.write_all(file.fileno(), [memoryview(content)[:7], memoryview(content)[7:]], 3)
    assert (tmp_path / "file").read_bytes() == bytes(3) + content


def test_lengths_that_do_not_fit_are_refused(store: Store) -> None:
    with store.writer("tree") as saver:
        for lengths in ([3], [5], [2, 3], [0, 4], [-1, 5]):
            with pytest.raises(ValueError):
                saver.add_blocks(memoryview(b"four"), lengths)
        with pytest.raises(ValueError):
            saver.add_blocks(memoryview(bytes(blocks.MAX_BLOCK + 1)), [blocks.MAX_BLOCK + 1])


def test_leaving_without_publish_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.writer("tree") as saver:
        saver.add_blocks(memoryview(b"abc"), [3])
        assert [name.split(",")[0] for name in files_of(store)] == [
            "locks/save",
            "locks/spare",
            f"packs/{saver.id}.tmp",
        ]
        assert store.snapshots() == []
        raise KeyError
    assert files_of(store) == ["locks/spare"]
    with pytest.raises(RuntimeError):
        saver.publish(b"", "")
    with pytest.raises(RuntimeError):
        saver.add_blocks(memoryview(b"abc"), [3])


def test_everything_is_private(store: Store) -> None:
    old = os.umask(0)
    try:
        save(store, b"secret")
    finally:
        os.umask(old)
    for path in [Path(store.path), *Path(store.path).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_names_that_are_none_are_refused_by_name(store: Store) -> None:
    with pytest.raises(ValueError, match="kind 'Tree'"):
        store.writer("Tree")
    with pytest.raises(ValueError, match="a/b"):
        store.writer("tree", {"a/b": "c"})
    with pytest.raises(ValueError, match="printable"):
        store.writer("tree", {"a": "\x1b[2J"})
    with store.writer("tree") as saver:
        info = saver.publish(b"", "py\udcffthon \x1b[2J")
    assert info.summary == "py?thon ?[2J"
    assert store.prune(1).snapshots == (), "the refused writers hold no lock"


def test_notices_are_kept_with_a_snapshot_and_listed(store: Store) -> None:
    with store.writer("tree") as saver:
        info = saver.publish(b"", "a test", notices=["a connection is \x1b[2J lost", "b" * 2000, *map(str, range(70))])
    assert info.notices[:2] == ("a connection is ?[2J lost", "b" * 1024)
    assert len(info.notices) == 64
    assert [listed.notices for listed in store.snapshots()] == [info.notices]


def test_resolve(store: Store) -> None:
    with pytest.raises(NotFound, match="there is no store at"):
        store.resolve("latest")
    store.remove(save(store, b"x").id)
    with pytest.raises(NotFound, match="no snapshots"):
        store.resolve("latest")
    infos = [save(store, b"x") for _ in range(3)]
    assert store.snapshots() == infos, "oldest first"
    assert store.resolve("latest") == infos[-1]
    for info in infos:
        assert store.resolve(info.id) == store.resolve(info.short) == info
    with pytest.raises(NotFound, match="beginning of 3 snapshots"):
        store.resolve("20")
    with pytest.raises(NotFound, match="no snapshot ''"):
        store.resolve("")
    wrong = infos[0].short[:-1] + "0"
    with pytest.raises(NotFound, match=infos[0].id):
        store.resolve(wrong)
    for text in ("../../etc", "/", "\0", infos[0].id + "/"):
        with pytest.raises(NotFound):
            store.resolve(text)


def test_a_name_means_the_newest_snapshot_that_has_it(store: Store) -> None:
    first, second, other = (save(store, b"x", name=name) for name in ("tides", "tides", "moon"))
    assert store.resolve("tides") == second
    assert store.resolve(first.id) == first
    alike = save(store, b"x", name=second.id)
    assert store.resolve(second.id) == second, "an id is no other snapshot's name"
    shadow = save(store, b"x", name=other.short[:3])
    assert store.resolve(other.short[:3]) == shadow, "a name is no beginning of an id"
    assert store.resolve(alike.short) == alike
    with pytest.raises(NotFound, match="did you mean moon"):
        store.resolve("mooon")


def test_a_store_that_is_not_there(store: Store) -> None:
    assert store.snapshots() == []
    for act in (
        store.verify,
        lambda: store.prune(0),
        lambda: store.prune(0, dry_run=True),
        lambda: store.open("latest"),
    ):
        with pytest.raises(NotFound, match="there is no store at"):
            act()
    assert not os.path.exists(store.path), "reading makes nothing"


def test_a_store_that_goes_away_while_it_is_verified(store: Store, tmp_path: Path) -> None:
    """Its file system is unmounted: what was listed has not been removed, and is not sound."""
    for content in (b"a", b"b"):
        save(store, content)

    def unmount(*_: int) -> None:
        if os.path.exists(store.path):
            os.rename(store.path, tmp_path / "unmounted")

    with pytest.raises(NotFound, match="there is no store at"):
        store.verify(None, unmount)


def test_the_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    monkeypatch.delenv("TORPOR_STORE", raising=False)
    assert default_path() == "/home/someone/.local/share/torpor"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_path() == "/data/torpor"
    monkeypatch.setenv("TORPOR_STORE", "/elsewhere")
    assert Store().path == "/elsewhere"
    assert Store("here").path == os.path.abspath("here")


def test_ids_sort_by_time_even_when_the_clock_runs_backwards() -> None:
    now = new_id(None)
    assert ID.fullmatch(now)
    ahead = "29991231-235959999-aaaaaa"
    after = new_id(ahead)
    assert after.startswith("30000101-000000000-") and new_id(after) > after
    for impossible in ("99999999-999999999-zzzzzz", "99991231-235959999-zzzzzz"):
        assert ID.fullmatch(new_id(impossible))


def test_needs_that_are_not_known_are_refused_by_name(store: Store) -> None:
    with store.writer("tree") as saver:
        info = saver.publish(b"", "", needs=("zstd", "amx"))
    assert info.needs == ("zstd", "amx")
    with pytest.raises(ImageDamaged, match="does not know: amx"):
        store.open(info.id, knows={"zstd"})
    with store.open(info.id, knows={"zstd", "amx", "more"}) as reader:
        assert reader.needs == info.needs
    assert store.verify() == []


@pytest.mark.parametrize("name", ["", "snapshots", "packs"])
def test_a_store_that_others_can_write_is_refused(store: Store, name: str) -> None:
    save(store, b"x")
    os.chmod(os.path.join(store.path, name), 0o770)
    for act in (store.snapshots, lambda: store.writer("tree"), lambda: store.prune(1)):
        with pytest.raises(NotPermitted, match="chmod go-w"):
            act()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_owns_is_refused(store: Store) -> None:
    info = save(store, b"x")
    pack = os.path.join(store.path, "packs", f"{info.id}.pack")
    os.chown(pack, 12345, 12345)
    with store.open(info.id) as reader, pytest.raises(NotPermitted, match="uid 12345"):
        reader.read_block(0)
    os.chown(store.path, 12345, 12345)
    for act in (store.snapshots, lambda: store.writer("tree"), lambda: store.prune(1)):
        with pytest.raises(NotPermitted, match="uid 12345"):
            act()


def test_an_index_compares_whole_hashes() -> None:
    index = blocks.Index(blocks.BlockTable())
    one, two = b"same 8 b" + b"1" * 24, b"same 8 b" + b"2" * 24
    assert index.append(one, 0, 4096, 1) == 0
    assert index.find(two) is None
    assert index.append(two, 0, 8192, 1) == 1
    assert index.find(two) == 1 and index.find(one) is None
    assert blocks.Index(index.table).find(two) == 1


def test_a_snapshot_refers_to_so_many_earlier_packs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known.KnownBlocks, "MOST_PACKS", 3)
    contents = random_blocks(5)
    for content in contents:
        save(store, content)
    info = save(store, *contents)
    assert len(info.packs) == 4
    assert os.path.getsize(os.path.join(store.path, "packs", f"{info.id}.pack")) == 4096 + 2 * BLOCK
    assert load(store) == contents


def test_a_writer_that_does_not_reuse_writes_what_is_there_already(store: Store) -> None:
    content = os.urandom(BLOCK)
    first = save(store, content)
    with store.writer("tree", reuse=False) as saver:
        indexes = saver.add_blocks(memoryview(content * 2), [BLOCK, BLOCK])
        second = saver.publish(bytes(indexes), "a test")
    assert indexes == [0, 0]  # within a snapshot equal blocks are still kept once
    assert second.packs == (second.id,) != first.packs
    assert load(store) == [content, content]
