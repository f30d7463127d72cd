"""What goes wrong around a kernel: servers killed in the middle, stores that are full, people who may not."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.jupyter import TOKEN, Answer, Notebook, Server, answers, connected, printed, running, wait_until
from tests.users import User
from torpor_jupyter.kernels.recorder import is_recorded

AUTHORIZER = """
from jupyter_server.auth.authorizer import Authorizer

class OnlyLooks(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return resource != "torpor" or action == "read"

c.ServerApp.authorizer_class = OnlyLooks
"""


def records(server: Server, kind: str = "kernels") -> Iterator[Path]:
    return (server.store / "jupyter" / kind).glob("*.json")


def record(server: Server) -> tuple[Path, dict[str, Any]]:
    (path,) = records(server)
    return path, json.loads(path.read_text())


def test_two_tabs_and_dead_ones(server: Server) -> None:
    """Both tabs hear all, before and after; a tab that has gone without a word holds nobody up."""
    _, kernel = server.new_session("work.ipynb")
    dead = Notebook(server, kernel)
    with Notebook(server, kernel) as one, Notebook(server, kernel) as two:
        dead.run("x = []")
        assert dead.socket.sock
        dead.socket.sock.close()
        for number in range(2):
            server.torpor(kernel, "/park")
            asked = [tab.start(f"x.append({name!r}); print(x)") for tab, name in ((one, "a"), (two, "b"))]
            server.torpor(kernel, "/resume")
            said = [tab.finish(id) for tab, id in zip((one, two), asked, strict=True)]
            assert said[1] == f"{['a', 'b'] * (number + 1)}\n"
        one.until(lambda: one.printed().count("\n") == 4, "it hears what the other one asked, too")
        assert one.printed() == two.printed()


def test_pages_that_have_gone(server: Server) -> None:
    """Their cells run, are told to be aborted when the page is back, and are in nobody's way."""
    _, kernel = server.new_session("work.ipynb")

    def nobody() -> None:
        wait_until(lambda: not server.get(f"api/kernels/{kernel}")["connections"], "the page has gone")

    with Notebook(server, kernel) as page:
        page.run("x = 1")
        first = server.torpor(kernel, "/checkpoints")
        stuck = page.start_loop()
    nobody()
    server.torpor(kernel, f"/checkpoints/{first['id']}/restore")
    with Notebook(server, kernel, page.session) as page:
        page.until(lambda: page.finished(stuck), "the cell that is no more is told so")
        assert page.about(stuck, "execute_reply")[0]["status"] == "aborted"
        server.torpor(kernel, "/park")
        waits = [page.start(code) for code in ("x += 1", "while not __import__('os').path.exists('go'): pass")]
    nobody()
    with Notebook(server, kernel) as reloaded:
        server.torpor(kernel, "/resume")
        reloaded.until(lambda: reloaded.about(waits[1], "execute_input"), "what has waited runs")
        (server.root / "go").touch()
        reloaded.until(lambda: len(reloaded.about(waits[1], "status")) == 2, "it is done")
        assert reloaded.run("print(x)") == "2\n"
        made = server.torpor(kernel, "/checkpoints")
        kept = json.loads((server.store / "jupyter" / "checkpoints" / f"{made['id']}.json").read_text())
        assert (kept["execution_state"], kept["outstanding"]) == ("idle", [])


ASKS = """
import os, time
print("before")
while not os.path.exists("go"): time.sleep(0.01)
print("got", input("name? "))
"""


@pytest.mark.parametrize("how", ["reload", "restart", pytest.param("kill", marks=pytest.mark.soak)])
def test_a_page_that_comes_hears_and_is_asked_what_the_last_one_was(ordinary_account: User, how: str) -> None:
    """A cell prints and asks for a line while its page has gone: on the same server, or over a restart or its death."""
    with running(Server(ordinary_account)) as server:
        _, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as page:
            page.run("x = 1")
            cell = page.start(ASKS)
            page.until(lambda: page.output(cell) == "before\n", "it runs")
        if how == "restart":
            server.stop()
            server.start()
        elif how == "kill":
            wait_until(
                lambda: "before" in "".join(note.read_text() for note in records(server, "notes")), "it is noted"
            )
            server.kill()
            wait_until(lambda: is_recorded(server.store / "jupyter", kernel), "it is recorded")
            (server.root / "go").touch()
            (note,) = records(server, "notes")
            wait_until(
                lambda: "name? " in json.loads(note.read_text())["cells"].split(ASKS)[-1], "its question is noted"
            )
            server.start()
        with Notebook(server, kernel) as reloaded:
            if how == "restart":
                server.torpor(kernel, "/resume")
            (server.root / "go").touch()

            def said(kind: str) -> list[dict[str, Any]]:
                (found,) = server.torpor(kernel, "/cells", session=reloaded.session)
                assert found["request"]["msg_id"] == cell and found["code"] == ASKS
                return [m["content"] for m in found["messages"] if m["header"]["msg_type"] == kind]

            (question,) = wait_until(lambda: said("input_request"), "it asks")
            assert question["prompt"] == "name? "
            assert "".join(part["text"] for part in said("stream") if part["name"] == "stdout") == "before\n"
            reloaded.send("input_reply", {"value": "me"}, "stdin")
            reloaded.until(lambda: reloaded.output(cell) == "got me\n", "it goes on")
            reloaded.until(lambda: reloaded.about(cell, "status"), "it is done")
            assert reloaded.run("print(x)") == "1\n"
            assert server.torpor(kernel, "/cells", session=reloaded.session) == []


def test_who_may_only_look(ordinary_account: User) -> None:
    config = ordinary_account.tmp / "config.py"
    config.write_text(AUTHORIZER)
    with running(Server(ordinary_account, f"--config={config}")) as server:
        _, kernel = server.new_session("work.ipynb")
        assert server.kernel(kernel)["state"] == "living"
        id = "20200101-000000000-aaaaaa"
        for path in (
            "park",
            "resume",
            "cancel",
            "cells",
            "checkpoints",
            f"checkpoints/{id}/restore",
            f"checkpoints/{id}/fork",
        ):
            with pytest.raises(Answer, match="403"):
                server.torpor(kernel, f"/{path}")
        for method in ("PATCH", "DELETE"):
            with pytest.raises(Answer, match="403"):
                server.ask(method, f"api/torpor/kernels/{kernel}/checkpoints/{id}", {})
        assert server.get(f"api/torpor/kernels/{kernel}/checkpoints") == []


def test_hostile_names(ordinary_account: User) -> None:
    with running(Server(ordinary_account)) as server:
        _, kernel = server.new_session("work.ipynb")
        made = server.torpor(kernel, "/checkpoints")["id"]
        for bad in ("..%2f..%2fetc", "%00", "x" * 5000, "-", f"{kernel}%2f..", "1-1-1-1-1"):
            with pytest.raises(Answer, match=r"404|400|414"):
                server.get(f"api/torpor/kernels/{bad}?%")
            with pytest.raises(Answer, match=r"404|400|414"):
                server.get(f"api/torpor/kernels/{kernel}/checkpoints/{made}/diff?with={bad}")
        for name in ("/etc/passwd.ipynb", "../../x.ipynb", "no/such/folder/x.ipynb", "x\0.ipynb", ".ipynb\n", "x.py"):
            with pytest.raises(Answer, match=r"40[0-9]|500"):
                server.torpor(kernel, f"/checkpoints/{made}/fork", path=name)
        with pytest.raises(Answer, match=r"400.*longer than"):
            server.torpor(kernel, "/checkpoints", name="x" * 201)
        for unshown in ({"name": "\u202e"}, {"name": "\0"}, {"note": "\x1b[31m"}):
            with pytest.raises(Answer, match=r"400.*cannot be shown"):
                server.torpor(kernel, "/checkpoints", **unshown)
        asked = Request(f"{server.url}api/torpor/api.yaml", headers={"Authorization": f"token {TOKEN}"})
        with urlopen(asked) as described:
            assert described.headers["Content-Type"] == "application/yaml"
        odd = server.torpor(kernel, "/checkpoints", name="<b>\n")
        assert odd["name"] == "<b>\n"
        assert len(server.get("api/kernels")) == 1
        for path in records(server, "checkpoints"):
            assert path.stat().st_mode & 0o777 == 0o600
        # Records that somebody has written are not believed.
        path = next(records(server, "checkpoints"))
        path.write_text('{"id": "other"}')
        damaged = [c for c in server.get("api/torpor/checkpoints") if c["damage"]]
        assert len(damaged) == 1
        with pytest.raises(Answer, match="507"):
            server.torpor(kernel, f"/checkpoints/{damaged[0]['id']}/restore")
        path.unlink()


@pytest.mark.soak
def test_a_client_of_another_program(ordinary_account: User) -> None:
    """As an editor's that has the kernel's connection file: it comes back by itself, and loses no request."""
    with running(Server(ordinary_account)) as server:
        _, kernel = server.new_session("work.ipynb")
        (connection_file,) = server.runtime.glob("kernel-*.json")
        with connected(connection_file) as client:
            assert printed(client, "x = 1; print(x)") == "1\n"
            first = server.torpor(kernel, "/checkpoints")["id"]
            server.torpor(kernel, "/park")
            sent = client.execute("x += 1")
            server.torpor(kernel, "/resume")
            while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != sent:
                pass
            assert reply["content"]["status"] == "ok"
            wait_until(lambda: answers(client), "its channels are back")
            assert printed(client, "print(x)") == "2\n"
            server.torpor(kernel, f"/checkpoints/{first}/restore")
            wait_until(lambda: answers(client), "its channels are back")
            assert printed(client, "print(x)") == "1\n"


@contextmanager
def small_disk(folder: Path, user: User, size: str) -> Iterator[None]:
    """A file system of a few bytes in a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(folder)], check=True)
    user.own(folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root")
def test_a_full_store(ordinary_account: User) -> None:
    """Nothing is lost: the kernel runs on, with what was printed meanwhile; with room all is well again."""
    server = Server(ordinary_account)
    with small_disk(server.store, ordinary_account, "120m"), running(server):
        _, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as notebook:
            notebook.run("x = 5")
            first = server.torpor(kernel, "/checkpoints")
            notebook.run("import os; large = os.urandom(200 << 20)")
            for path in ("/checkpoints", "/park", f"/checkpoints/{first['id']}/restore"):
                with pytest.raises(Answer, match=r"507.*[Nn]o space left"):
                    server.torpor(kernel, path)
                assert notebook.run("print(x, len(large) >> 20)") == "5 200\n"
            assert [c["id"] for c in server.get(f"api/torpor/kernels/{kernel}/checkpoints")] == [first["id"]]
            notebook.run("del large")
            server.torpor(kernel, "/park")
            server.torpor(kernel, "/resume")
            assert notebook.run("print(x)") == "5\n"


def test_a_server_that_is_killed_before_it_has_written_down_what_it_did(ordinary_account: User) -> None:
    """A kernel that was parked, and one that was woken, by a server that died at the next moment."""
    server = Server(ordinary_account)
    with running(server):
        session, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as notebook:
            notebook.run("x = 5")
        wait_until(lambda: "work.ipynb" in record(server)[0].read_text(), "the session is written down")
        path, living = record(server)
        snapshot = server.torpor(kernel, "/park")["snapshot"]
        server.kill()
        _, parked = record(server)
        path.write_text(json.dumps(living))
        (server.store / "jupyter" / "checkpoints" / f"{snapshot}.json").unlink()
        server.start()
        told = server.kernel(kernel)
        assert (told["state"], told["snapshot"], told["sessions"][0]["id"]) == ("parked", snapshot, session)
        pid = server.torpor(kernel, "/resume")["pid"]
        server.kill()
        assert os.path.exists(f"/proc/{pid}")
        path.write_text(json.dumps(parked))
        server.start()
        told = server.kernel(kernel)
        assert (told["state"], told["pid"], told["head"]) == ("living", pid, snapshot)
        with Notebook(server, kernel) as notebook:
            assert notebook.run("print(x)") == "5\n"


@pytest.mark.soak
def test_a_server_that_is_killed_at_any_moment(ordinary_account: User) -> None:
    """Whatever it did: the next server finds the kernel, living or parked, with all it had."""
    server = Server(ordinary_account)
    chance = random.Random(7)
    with running(server):
        _, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as notebook:
            notebook.run("x = [0]; import numpy; large = numpy.random.default_rng(1).random(5_000_000)")
        wait_until(lambda: "work.ipynb" in record(server)[0].read_text(), "the session is written down")
        for number in range(1, 40):
            wait_until(lambda: kernel in {k["id"] for k in server.get("api/torpor/kernels")}, "it is found")
            if server.kernel(kernel)["state"] == "parked":
                server.torpor(kernel, "/resume")
            with Notebook(server, kernel) as notebook:
                assert notebook.run(f"x.append({number}); print(x == list(range(len(x))), len(x))") == (
                    f"True {number + 1}\n"
                )
            deeds = chance.choice([["/checkpoints"], ["/park"], ["/park", "/resume"]])
            worker = Thread(target=_do, args=(server, kernel, deeds))
            worker.start()
            time.sleep(chance.random() * 0.8)
            server.kill()
            worker.join()
            server.start()


def _do(server: Server, kernel: str, deeds: list[str]) -> None:
    with suppress(Answer, OSError):  # the server is killed meanwhile
        for deed in deeds:
            server.torpor(kernel, deed)


@pytest.mark.soak
def test_fifty_kernels(ordinary_account: User) -> None:
    """All are parked when the server stops, and all go on at the next one."""
    server = Server(ordinary_account)
    with running(server):
        kernels = {}
        for number in range(50):
            _, kernel = server.new_session(f"{number}.ipynb")
            kernels[kernel] = number
            with Notebook(server, kernel) as notebook:
                notebook.run(f"x = {number}")
        began = time.monotonic()
        os.kill(server.pid, 15)
        server.process.wait(600)
        parked = time.monotonic()
        server.start()
        assert {k["id"] for k in server.get("api/torpor/kernels")} == set(kernels)
        print(f"50 kernels: {parked - began:.1f} s to park, {time.monotonic() - parked:.1f} s until a server has them")
        took = []
        for kernel, number in kernels.items():
            with Notebook(server, kernel) as notebook:
                asked, began = notebook.start("print(x)"), time.monotonic()
                server.torpor(kernel, "/resume")
                assert notebook.finish(asked) == f"{number}\n"
                took.append(time.monotonic() - began)
            server.ask("DELETE", f"api/kernels/{kernel}")
        print(f"to a reply: median {statistics.median(took) * 1000:.0f} ms, longest {max(took) * 1000:.0f} ms")
