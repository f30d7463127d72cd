"""The commands that look into a store: ls, show, verify, rm, prune, and completion of ids."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.cli.conftest import Torpor
from tests.users import BIN
from torpor.cli import describe, ls
from torpor.image import image_pb2 as pb
from torpor.image.image_pb2 import TcpSocket, Tree, Vma
from torpor.store import SnapshotInfo, Store

PAGE = 4096


def a_tree() -> Tree:
    """A shell with a listening child, in which everything that `show` tells occurs."""
    tree = Tree()
    host = tree.host
    host.architecture, host.hostname, host.page_size, host.xsave_size = "x86_64", "node7", PAGE, 2696
    host.filters = 2
    tree.filters.add(code=bytes(8))
    tree.timing.pause_ns = 12_300_000
    program = tree.files.add(path=b"/usr/bin/bash", size=1234)
    program.build_id = bytes.fromhex("c0ffee")
    shell = tree.processes.add(pid=100, ppid=1, pgid=100, sid=100, cwd=b"/home/ann")
    shell.threads.add(tid=100, name=b"bash\x1b[2J")
    shell.credentials.uids.extend([1000] * 4)
    shell.memory.vmas.add(start=0x10000, end=0x20000, kind=Vma.FILE_PRIVATE)
    shell.memory.vmas.add(start=0x20000, end=0x30000, kind=Vma.ANONYMOUS)
    # one run over the border between both: 2 pages before it, 3 after
    shell.memory.pages.starts.append(0x1E)
    shell.memory.pages.counts.append(5)
    shell.memory.pages.blocks.append(0)
    child = tree.processes.add(pid=101, ppid=100, pgid=101, sid=100, stopped=True, cwd=b"/home/ann")
    child.threads.add(tid=101, name=b"server")
    for tid in (102, 103):
        child.threads.add(tid=tid, name=b"worker")
    ended = tree.processes.add(pid=104, ppid=100, pgid=104, sid=100, zombie=True)
    ended.threads.add(tid=104, name=b"date")
    log = tree.descriptions.add(flags=os.O_WRONLY)
    log.file.path, log.file.position = b"/home/ann/out.log", 77
    listener = tree.descriptions.add(flags=os.O_RDWR)
    listener.tcp.state = TcpSocket.LISTEN
    listener.tcp.local = bytes.fromhex("0200 1f90 7f000001 0000000000000000")
    pipe = tree.descriptions.add(flags=os.O_RDONLY)
    pipe.pipe.pipe = 0
    tree.pipes.add(content=b"waiting")
    terminal = tree.descriptions.add(flags=os.O_RDWR)
    terminal.outside.was = "terminal /dev/pts/3"
    for fd, description in enumerate([3, 0, 0, 1, 2]):
        child.fds.add(fd=fd, description=description)
    return tree


def save(store: Store, summary: str = "bash, 2 processes", content: bytes = b"x" * PAGE, **tags: str) -> SnapshotInfo:
    with store.writer("tree", tags) as writer:
        writer.add_blocks(memoryview(content), [len(content)])
        return writer.publish(a_tree().SerializeToString(), summary, notices=["a connection is lost"])


def test_an_empty_store(run: Torpor, store: Store) -> None:
    os.makedirs(os.path.join(store.path, "snapshots"), 0o700)
    os.mkdir(os.path.join(store.path, "packs"), 0o700)
    assert run("ls") == (0, "", f"no snapshots in {store.path}\n")
    assert run("ls", "--json") == (0, "[]\n", "")
    code, out, err = run("show", "latest")
    assert (code, out) == (11, "")
    assert err.startswith("torpor: ")


def test_ls(run: Torpor, store: Store) -> None:
    first = save(store, "first \x1b[31m", owner="ann")
    second = save(store, "second")
    code, out, _ = run("ls")
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split() == ["ID", "AGE", "SIZE", "NEW", "HOST", "WHAT"]
    assert [row.split()[0] for row in rows] == [first.id, second.id]
    assert "\x1b" not in out
    assert "owner=ann" in rows[0]
    told = json.loads(run("ls", "--json")[1])
    assert [(s["id"], s["tags"]) for s in told] == [(first.id, {"owner": "ann"}), (second.id, {})]


def test_ls_with_lines_of_ones_own(run: Torpor, store: Store) -> None:
    first, second = save(store, name="tides"), save(store)
    lines = f"{first.id}: {first.size}, tides\n{second.id}: {second.size}, \n"
    assert run("ls", "--format", "{id}: {size}, {tags[name]}") == (0, lines, "")
    for line, why in (("{nothing}", "has no 'nothing'"), ("{id", "cannot be filled in"), ("{id.x}", "cannot be")):
        code, _, err = run("ls", "--format", line)
        assert (code, why in " ".join(err.split())) == (2, True)


def test_ls_of_some(run: Torpor, store: Store) -> None:
    first, second, third = save(store, owner="ann", of="x"), save(store, owner="ben"), save(store, owner="ann")
    assert run("ls", "-q") == (0, f"{first.id}\n{second.id}\n{third.id}\n", "")
    assert run("ls", "-q", "--tag", "owner=ann") == (0, f"{first.id}\n{third.id}\n", "")
    assert run("ls", "-q", "--tag", "owner=ann", "--tag", "of=x")[1] == f"{first.id}\n"
    assert run("ls", "-q", "--tag", "owner=ann", "--latest", "1")[1] == f"{third.id}\n"
    assert run("ls", "-q", "--host", first.host, "--kind", "tree")[1].count("\n") == 3
    assert run("ls", "--host", "nowhere") == (0, "", f"no such snapshots in {store.path}\n")
    assert json.loads(run("ls", "--json", "--kind", "dask")[1]) == []


@pytest.mark.parametrize(
    ("columns", "left"),
    [(120, "ID AGE SIZE NEW HOST WHAT"), (80, "ID AGE WHAT"), (60, "ID AGE WHAT"), (44, "ID WHAT")],
)
def test_ls_in_a_narrow_terminal(
    run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch, columns: int, left: str
) -> None:
    info = save(store, "python analysis.py " * 9)
    monkeypatch.setattr(ls, "console", lambda: Console(width=columns, highlight=False))
    out = run("ls")[1]
    assert out.splitlines()[0].split() == left.split()
    assert info.id in out
    assert max(map(len, out.splitlines())) <= max(columns, len(info.id) + 3)


def test_an_ascii_locale(store: Store) -> None:
    info = save(store, owner="J\u00fcrgen")
    # The command itself lets Python take UTF-8 for the locale C; other locales may not be installed.
    torpor: list[str | Path] = [BIN / "python", "-X", "utf8=0", BIN / "torpor-cli"]
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "TORPOR_STORE": store.path}
    for words, wanted in (["ls"], "J\\xfcrgen"), (["ls", "--json"], "J\\u00fcrgen"), (["show", info.id], "J\\xfcrgen"):
        done = subprocess.run([*torpor, *words], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert wanted in done.stdout


def test_rm_of_several(run: Torpor, store: Store) -> None:
    first, second, third = save(store, "a"), save(store, "b"), save(store, "c")
    assert run("rm", first.id, "nothing")[0] == 11
    assert len(store.ids()) == 3  # none is removed if one is not there
    told = json.loads(run("rm", first.id, second.id, first.short, "--json")[1])
    assert ([one["id"] for one in told["snapshots"]], store.ids()) == ([first.id, second.id], [third.id])


def test_a_damaged_snapshot_is_listed_as_such(run: Torpor, store: Store) -> None:
    info = save(store)
    manifest = next(path for path in Path(store.path).rglob("manifest*") if info.id in str(path))
    manifest.write_bytes(manifest.read_bytes()[:40])
    code, out, _ = run("ls")
    assert code == 0
    assert "damaged: " in out
    assert run("verify", info.id)[0] == 31


def test_verify(run: Torpor, store: Store) -> None:
    info = save(store, content=os.urandom(PAGE))
    assert run("verify", "--all") == (0, "sound\n", "")
    assert run("verify", info.id, "--all")[0] == 2
    pack = next(Path(store.path).rglob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    code, out, err = run("verify", info.short)
    assert (code, out) == (31, "")
    assert err.startswith("torpor: ")
    assert info.id in err
    code, out, _ = run("verify", "--all", "--json")
    assert code == 31
    assert not json.loads(out)["sound"]


def test_rm(run: Torpor, store: Store) -> None:
    first, second = save(store), save(store, content=b"y" * PAGE)
    code, out, _ = run("rm", first.id)
    assert code == 0
    assert out.startswith(f"removed {first.id}, ")
    assert [info.id for info in store.snapshots()] == [second.id]
    told = json.loads(run("rm", "latest", "--json")[1])
    assert [info["id"] for info in told["snapshots"]] == [second.id]
    assert run("rm", "latest")[0] == 11


def test_prune(run: Torpor, store: Store) -> None:
    infos = [save(store, content=bytes([n + 1]) * PAGE) for n in range(3)]
    code, out, _ = run("prune", "--keep-last", "1", "--dry-run")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[:2]] == [["would", "remove", i.id] for i in infos[:2]]
    assert len(store.snapshots()) == 3
    told = json.loads(run("prune", "--keep-last", "1", "--json")[1])
    assert [info["id"] for info in told["snapshots"]] == [info.id for info in infos[:2]]
    assert told["freed"] > 2 * PAGE
    assert [info.id for info in store.snapshots()] == [infos[2].id]


def test_prune_by_age_and_label(run: Torpor, store: Store) -> None:
    infos = [save(store, of=name) for name in "aab"]
    code, _, err = run("prune", "--tag", "of=a")
    assert (code, "say what to keep" in err) == (2, True)
    assert run("prune", "--keep-within", "0")[0] == 2
    assert run("prune", "--keep-daily", "7", "--keep-within", "30d")[1] == "0 B freed\n"
    told = json.loads(run("prune", "--keep-hourly", "1", "--tag", "of=a", "--json")[1])
    assert [info["id"] for info in told["snapshots"]] == [infos[0].id]
    assert store.ids() == [infos[1].id, infos[2].id]


def test_prune_of_a_kind_that_there_is_not(run: Torpor) -> None:
    code, _, err = run("prune", "--keep-last", "0", "--kind", "trees")
    assert code == 2
    assert "'trees' is not one of 'tree', 'dask'" in err


def test_export_and_import(run: Torpor, store: Store, tmp_path: Path) -> None:
    info = save(store, owner="ann")
    file, other = str(tmp_path / "file"), str(tmp_path / "other")
    assert run("export", info.short, file) == (0, f"{file}\n", "")
    assert run("export", "latest", file)[0] == 10
    assert run("import", file, "--store", other) == (0, f"{info.id}\n", "")
    assert json.loads(run("ls", "--json", "--store", other)[1])[0]["tags"] == {"owner": "ann"}
    code, out, _ = run("import", file, "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (10, "Refused")
    assert run("import", file, "--store", str(tmp_path))[0] == 30, "that is no store"
    assert run("import", str(tmp_path / "nothing"))[0] == 11


def test_completion_of_ids(store: Store) -> None:
    infos = [save(store, f"job {n}") for n in range(2)]

    def complete(words: str) -> list[str]:
        asked = {**os.environ, "_TORPOR_COMPLETE": "bash_complete", "COMP_WORDS": words}
        asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        out = subprocess.check_output([BIN / "torpor"], env=asked, text=True)
        return [line.partition(",")[2] for line in out.splitlines()]

    assert complete("torpor show ") == [infos[1].id, infos[0].id, "latest"]
    assert complete(f"torpor show {infos[0].short[:4]}") == [infos[0].short]
    assert complete("torpor show --store /nowhere ") == ["latest"]
    assert "checkpoint" in complete("torpor ")
    assert complete("torpor prune --kind ") == ["tree", "dask"]


def test_every_kind_of_descriptor_has_words() -> None:
    kinds = pb.Description.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert len(kinds) > 15
    for field in kinds:
        description = pb.Description()
        getattr(description, field.name).SetInParent()
        told = describe.describe_description(description, pb.Tree())
        assert told["kind"] == field.name
        assert "does not know" not in told["what"], field.name


@pytest.mark.parametrize("command", [("ls",), ("verify", "--all"), ("prune", "--keep-last=1"), ("rm", "latest")])
@pytest.mark.parametrize("named_by", ["option", "environment"])
def test_a_store_that_was_named_and_is_not_there(
    run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], named_by: str
) -> None:
    """Its file system is not mounted: a check of it must not say that all is well."""
    arguments = command
    if named_by == "option":
        monkeypatch.delenv("TORPOR_STORE")
        arguments = (*command, "--store", store.path)
    code, out, err = run(*arguments)
    assert (code, out) == (11, "")
    assert f"there is no store at {store.path}; is its file system mounted" in err
    assert not os.path.exists(store.path)


def test_the_default_store_may_be_made_later(run: Torpor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORPOR_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run("ls") == (0, "", f"no snapshots in {tmp_path / 'torpor'}\n")
    for words in (("verify", "--all"), ("prune", "--keep-last=1"), ("prune", "--keep-last=1", "--dry-run")):
        code, out, err = run(*words)  # of a nightly job, whose environment lacks $TORPOR_STORE
        assert (code, out) == (11, ""), words
        assert f"there is no store at {tmp_path / 'torpor'}" in err and "$TORPOR_STORE" in err, words


def test_a_store_without_a_name(run: Torpor) -> None:
    code, _, err = run("ls", "--store", "")
    assert code == 2
    assert "the name of the directory is empty" in err


def test_what_is_pinned_is_removed_only_by_force(run: Torpor, store: Store) -> None:
    info = save(store)
    store.pin(info.id)
    code, out, err = run("rm", info.id)
    assert (code, out) == (10, "")
    assert "it is pinned, or a parked kernel or a Slurm job waits in it" in err
    assert "--force" in err
    assert [one.id for one in store.snapshots()] == [info.id]
    code, out, _ = run("rm", info.id, "--force")
    assert code == 0
    assert f"removed {info.id}" in out
    assert not store.snapshots()
