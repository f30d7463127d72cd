"""`torpor diff`: what it prints of a comparison."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.unit.cli.conftest import Torpor
from tests.unit.image.test_comparison import PAGE, A, B, save, tree
from torpor.image.image_pb2 import Vma
from torpor.store import Store


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
