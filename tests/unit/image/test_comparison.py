"""What two snapshots of process trees do not have in common."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from torpor.errors import ImageDamaged
from torpor.image import Tree, compare
from torpor.image.comparison import Comparison
from torpor.image.image_pb2 import PageTable, SharedMemory
from torpor.store import SnapshotInfo, Store

PAGE = 4096
A, B, C = (letter * PAGE for letter in (b"a", b"b", b"c"))


def tree(*pids: int) -> Tree:
    made = Tree()
    made.host.page_size = PAGE
    for pid in pids:
        process = made.processes.add(pid=pid, ppid=pids[0] if pid != pids[0] else 0)
        process.threads.add(tid=pid, name=b"job\x1b[31m")
    return made


def save(
    store: Store, image: Tree, runs: list[tuple[int, bytes]] | None = None, shared: bytes | None = None
) -> SnapshotInfo:
    """Save a tree whose root has these pages from these page numbers on."""
    with store.writer("tree") as writer:
        for start, content in runs or []:
            pages = image.processes[0].memory.pages
            pages.starts.append(start)
            pages.counts.append(len(content) // PAGE)
            pages.blocks.extend(writer.add_blocks(memoryview(content), [len(content)]))
        if shared is not None:
            segment = image.shared.add(kind=SharedMemory.MEMFD, name=b"one", size=len(shared))
            segment.pages.starts.append(0)
            segment.pages.counts.append(len(shared) // PAGE)
            segment.pages.blocks.extend(writer.add_blocks(memoryview(shared), [len(shared)]))
        return writer.publish(image.SerializeToString(), "a test")


def compared(store: Store, before: SnapshotInfo, after: SnapshotInfo) -> Comparison:
    with store.open(before) as was, store.open(after) as now:
        return compare(was, now)


@pytest.mark.parametrize(
    ("before", "after", "changed", "came", "went"),
    [
        ([(0, A + B)], [(0, A + B)], 0, 0, 0),
        ([(0, A + B)], [(0, A + C)], 1, 0, 0),
        ([(0, A + B)], [(0, A), (1, B)], 0, 0, 0),
        ([(0, A + B + C)], [(1, C), (0, A), (2, C)], 1, 0, 0),
        ([(0, A)], [(0, A), (7, B + C)], 0, 2, 0),
        ([(3, A + B + C)], [(4, B)], 0, 0, 2),
        ([(3, A + B)], [(4, B + C)], 0, 1, 1),
        ([], [(0, A)], 0, 1, 0),
        ([(5, A)], [], 0, 0, 1),
        ([(0, A + A)], [(1, A + A)], 0, 1, 1),
    ],
)
def test_memory(
    store: Store,
    before: list[tuple[int, bytes]],
    after: list[tuple[int, bytes]],
    changed: int,
    came: int,
    went: int,
) -> None:
    infos = save(store, tree(1), before), save(store, tree(1), after)
    told: list[tuple[int, int]] = []
    with store.open(infos[0]) as was, store.open(infos[1]) as now:
        found = compare(was, now, lambda done, total: told.append((done, total))).both[0].memory
    assert [size // PAGE for size in (found.changed, found.came, found.went)] == [changed, came, went]
    total = sum(len(content) for _, content in after)
    assert (found.before, found.after) == (sum(len(content) for _, content in before), total)
    assert told[-1] == (total, total)


def test_a_part_of_a_block(store: Store) -> None:
    """As in a series: the pages of a block that were not written since keep their places in it."""
    after = tree(1)
    with store.writer("tree") as writer:
        blocks = [writer.add_blocks(memoryview(content), [len(content)])[0] for content in (A, C, A + B + C)]
        table = PageTable(starts=[0, 1, 2], counts=[1, 1, 1], blocks=blocks, skips=[0, 0, 2])
        after.processes[0].memory.pages.CopyFrom(table)
        later = writer.publish(after.SerializeToString(), "a test")
    memory = compared(store, save(store, tree(1), [(0, A + B + C)]), later).both[0].memory
    assert [size // PAGE for size in (memory.changed, memory.came, memory.went)] == [1, 0, 0]


def test_shared_memory(store: Store) -> None:
    infos = save(store, tree(1), shared=A + B), save(store, tree(1), shared=C + B)
    with store.open(infos[0]) as was, store.open(infos[1]) as now:
        assert compare(was, now).shared.changed == PAGE


def test_the_progress_ends_at_its_total(store: Store) -> None:
    """A process that came is compared with nothing, and counts for nothing."""
    grown = tree(1, 2)
    pages = grown.processes[1].memory.pages
    pages.starts.append(0)
    pages.counts.append(1)
    pages.blocks.append(0)
    infos = save(store, tree(1), [(0, A)], shared=A), save(store, grown, [(0, B)], shared=B)
    told: list[tuple[int, int]] = []
    with store.open(infos[0]) as was, store.open(infos[1]) as now:
        compare(was, now, lambda done, total: told.append((done, total)))
    assert told[-1] == (2 * PAGE, 2 * PAGE)


def test_shared_memory_of_one_name_is_compared_in_its_order(store: Store) -> None:
    images = []
    for contents in ((A, B), (A, C), (A,)):
        image = tree(1)
        with store.writer("tree") as writer:
            for content in contents:
                segment = image.shared.add(kind=SharedMemory.MEMFD, name=b"one", size=PAGE)
                segment.pages.starts.append(0)
                segment.pages.counts.append(1)
                segment.pages.blocks.extend(writer.add_blocks(memoryview(content), [PAGE]))
            images.append(writer.publish(image.SerializeToString(), "a test"))
    changed, went = compared(store, *images[:2]).shared, compared(store, images[0], images[2]).shared
    assert (changed.changed, changed.came, changed.went) == (PAGE, 0, 0)
    assert (went.changed, went.came, went.went) == (0, 0, PAGE)


def test_descriptors_that_lead_elsewhere_are_closed_and_opened(store: Store) -> None:
    before, after = tree(1), tree(1)
    for image, path in ((before, b"/old"), (after, b"/new")):
        image.descriptions.add().file.path = path
        image.descriptions.add().eventfd.count = 3
        image.descriptions.add(flags=os.O_RDWR).unix.SetInParent()
        for fd in range(3):
            image.processes[0].fds.add(fd=fd, description=fd)
        image.processes[0].fds.add(fd=9, description=77)
    after.descriptions[1].eventfd.count = 4
    (both,) = compared(store, save(store, before), save(store, after)).both
    assert (set(both.opened), set(both.closed), both.files) == ({0}, {0}, ())


def test_files_are_listed_once_and_by_their_names(store: Store) -> None:
    before, after = tree(1), tree(1)
    for image, position in ((before, 1), (after, 2)):
        for number, path in enumerate((b"/b", b"/a", b"/b")):
            file = image.descriptions.add().file
            file.path, file.position, file.size = path, position, 7
            image.processes[0].fds.add(fd=number, description=number)
    after.descriptions[1].file.position = 1
    (both,) = compared(store, save(store, before), save(store, after)).both
    assert [(file.path, file.position, file.size) for file in both.files] == [(b"/b", (1, 2), (7, 7))]


@pytest.mark.parametrize("page_size", [0, 1, 2**31])
def test_a_page_size_that_cannot_be_ends_in_an_answer(store: Store, page_size: int) -> None:
    infos = [save(store, tree(1), [(0, content)]) for content in (A, B)]
    odd = tree(1)
    odd.host.page_size = page_size
    infos.append(save(store, odd, [(0, B)]))
    with suppress(ImageDamaged):
        compared(store, infos[0], infos[2])
