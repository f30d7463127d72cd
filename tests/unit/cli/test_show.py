"""`torpor show`: what a snapshot holds, in words and for programs."""

from __future__ import annotations

import json

from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli_store import PAGE, save
from torpor.cli import describe
from torpor.store import Store


def test_show(run: Torpor, store: Store) -> None:
    info = save(store, owner="ann")
    for name in (info.id, info.id[:-2], info.short, "latest"):
        code, out, err = run("show", name)
        assert (code, err) == (0, ""), name
    words = " ".join(out.split())
    for part in (
        "paused for 12.3 ms",
        "owner = ann",
        "note: a connection is lost",
        r"100 bash\x1b[2J",
        "101 server (stopped)",
        "104 date (zombie: its parent has not waited for it)",
        "3 threads: server, 2 x worker",
        "private, of files 64.0 KiB (8.0 KiB stored)",
        "private 64.0 KiB (12.0 KiB stored)",
        "fd 1, 2: file, /home/ann/out.log at 77",
        "fd 3: tcp, listens on 127.0.0.1:8080",
        "fd 4: pipe, pipe 0, read end, 7 bytes in it",
        "standard input, was terminal /dev/pts/3",
        "a processor of the level x86-64-v1, and the register sets in use: no special ones; 4.0 KiB pages",
        "free ports: 127.0.0.1:8080",
        "root, under no system-call filter (seccomp): programs have filters of their own",
        "system-call filters (seccomp) like those that it was under: 2",
        "/usr/bin/bash",
    ):
        assert part in words


def test_show_for_programs(run: Torpor, store: Store) -> None:
    told = json.loads(run("show", save(store).id, "--json")[1])
    assert told["needs"]["pids"] == [100, 101, 102, 103, 104]
    assert told["needs"]["ports"] == ["127.0.0.1:8080"]
    assert told["needs"]["mapped_files"] == [{"path": "/usr/bin/bash", "size": 1234, "build_id": "c0ffee"}]
    shell, child, ended = told["processes"]
    assert shell["memory"]["anonymous"] == {"mapped": 0x10000, "stored": 3 * PAGE}
    assert [process["state"] for process in (shell, child, ended)] == ["running", "stopped", "ended"]
    assert child["descriptors"][3] == {
        "fd": 3,
        "close_on_exec": False,
        "kind": "tcp",
        "what": "listens on 127.0.0.1:8080",
        "access": "read and write",
    }


def test_addresses() -> None:
    six = bytes.fromhex("0a00 1f90 00000000 00000000000000000000000000000001 00000000")
    assert describe.address(six) == "[::1]:8080"
    assert describe.address(b"") == ""
    assert describe.address(bytes(16)) == "address family 0"
