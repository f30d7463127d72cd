"""`torpor diff`, and the comparison behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from torpor import cli
from torpor.image import Tree, compare
from torpor.image.image_pb2 import SharedMemory, Vma
from torpor.store import SnapshotInfo, Store

PAGE = 4096
A, B, C = (letter * PAGE for letter in (b"a", b"b", b"c"))
Torpor = Callable[..., tuple[int, str, str]]


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


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Torpor:
    monkeypatch.setenv("TORPOR_STORE", store.path)

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return call


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


def test_shared_memory(store: Store) -> None:
    infos = save(store, tree(1), shared=A + B), save(store, tree(1), shared=C + B)
    with store.open(infos[0]) as was, store.open(infos[1]) as now:
        assert compare(was, now).shared.changed == PAGE


def test_what_it_tells(run: Torpor, store: Store) -> None:
    before, after = tree(1, 2), tree(1, 3)
    for image, position, other in ((before, 5, b"/old"), (after, 9, b"/new")):
        log = image.descriptions.add(flags=os.O_WRONLY)
        log.file.path, log.file.position, log.file.size = b"/var/log", position, position
        image.descriptions.add().file.path = other
        image.descriptions.add().pipe.pipe = 0
        for fd in range(3):
            image.processes[0].fds.add(fd=fd, description=fd)
    after.processes[0].fds.add(fd=7, description=0)
    infos = save(store, before, [(0, A)]), save(store, after, [(0, B)])
    code, out, err = run("diff", infos[0].short, "latest")
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    name = r"job\x1b[31m"
    assert lines == [
        f"{infos[0].id}  a test",
        f"{infos[1].id}  a test",
        f"+ 3 {name}",
        f"- 2 {name}",
        f"  1 {name}",
        "      memory: 4.0 KiB changed, of 4.0 KiB",
        "      + fd 1: file, /new at 0",
        "      + fd 7: file, /var/log at 9",
        "      - fd 1: file, /old at 0",
        "      /var/log: at 9 (was 5), 9 B (were 5 B)",
    ]
    told = json.loads(run("diff", infos[0].id, infos[1].id, "--json")[1])
    assert [one["pid"] for one in told["came"] + told["went"]] == [3, 2]
    (process,) = told["processes"]
    assert process["memory"] == {"before": PAGE, "after": PAGE, "changed": PAGE, "came": 0, "went": 0}
    assert process["files"] == [
        {"path": "/var/log", "position": {"before": 5, "after": 9}, "size": {"before": 5, "after": 9}}
    ]
    assert run("diff", "latest", "latest")[1].splitlines()[-1] == "no difference"


def test_what_is_no_process_tree(run: Torpor, store: Store) -> None:
    info = save(store, tree(1))
    with store.writer("dask") as writer:
        other = writer.publish(b"", "results")
    code, _, err = run("diff", info.id, other.id)
    assert (code, f"snapshot {other.id} is of the kind dask, not a process tree" in err) == (31, True)


def test_an_image_that_names_blocks_which_there_are_not(run: Torpor, store: Store, tmp_path: Path) -> None:
    bad = tree(1)
    bad.processes[0].memory.vmas.add(start=0, end=PAGE, kind=Vma.ANONYMOUS)
    pages = bad.processes[0].memory.pages
    pages.starts.append(0)
    pages.counts.append(1)
    pages.blocks.append(77)
    infos = save(store, tree(1), [(0, A)]), save(store, bad)
    code, _, err = run("diff", infos[0].id, infos[1].id)
    assert (code, "it has no block 77" in err) == (31, True)
