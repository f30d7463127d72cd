"""Kernels of a real Jupyter server: saved, parked, woken, taken back, found again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from tests.jupyter import Answer, Notebook, Server, running, wait_until
from tests.users import User


def namespaces(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("user", "pid", "mnt")]


def test_a_parked_kernel_goes_on_where_it_was(server: Server) -> None:
    session, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        pid = int(notebook.run("import os; x = [1, 2]; print(os.getpid())"))
        assert namespaces(pid) == namespaces(server.pid)  # until it is woken
        ports = server.kernel(kernel)
        parked = server.torpor(kernel, "/park")
        assert (parked["state"], parked["pid"]) == ("parked", None)
        assert not os.path.exists(f"/proc/{pid}")
        waiting = [notebook.start(f"x.append({n}); print(x)") for n in (3, 4)]
        woken = server.torpor(kernel, "/resume")
        assert (woken["state"], woken["head"]) == ("living", parked["snapshot"])
        assert [notebook.finish(id) for id in waiting] == ["[1, 2, 3]\n", "[1, 2, 3, 4]\n"]
        assert int(notebook.run("print(os.getpid())")) == pid
        kinds = [m["msg_type"] for m in notebook.seen if (m["parent_header"] or {}).get("session") != notebook.session]
        assert kinds.count("iopub_welcome") <= 1 and not set(kinds) - {"iopub_welcome", "status"}, kinds
        assert not [m for m in notebook.seen if "torpor-request" in str(m["parent_header"])]
    (model,) = server.get("api/sessions")
    assert (model["id"], model["kernel"]["id"], ports["id"]) == (session, kernel, kernel)


def test_what_does_not_fit_is_refused(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with pytest.raises(Answer, match=r"409.*not parked"):
        server.torpor(kernel, "/resume")
    with pytest.raises(Answer, match="404"):
        server.torpor("00000000-0000-0000-0000-000000000000", "/park")
    with pytest.raises(Answer, match="403"):
        server.ask("POST", f"api/torpor/kernels/{kernel}/park", {}, token="")
    with pytest.raises(Answer, match=r"400.*unknown field"):
        server.torpor(kernel, "/park", mode="x")
    with pytest.raises(Answer, match=r"400.*is no str"):
        server.torpor(kernel, "/checkpoints", name=3)
    with pytest.raises(Answer, match="404"):
        server.torpor(kernel, "/checkpoints/20200101-000000000-aaaaaa/restore")
    with pytest.raises(Answer, match="404"):
        server.torpor(kernel, "/checkpoints/..%2f..%2fx/restore")
    server.torpor(kernel, "/park")
    with pytest.raises(Answer, match=r"409.*parked already"):
        server.torpor(kernel, "/park")


SHARED = """
import _posixshmem, mmap, os
name = f"/torpor-{os.getpid()}"
fd = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
os.ftruncate(fd, 9)
s = mmap.mmap(fd, 9)
def unlink(): _posixshmem.shm_unlink(name)
"""
"""Shared memory with a name, without the process that looks after multiprocessing's."""


def test_back_to_a_checkpoint_and_forth_again(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run(SHARED)
        notebook.run("x = s[0] = 1")
        first = server.torpor(kernel, "/checkpoints", name="first", note="a note")
        assert (first["name"], first["note"], first["cell"], first["execution_count"]) == (
            "first",
            "a note",
            "x = s[0] = 1",
            2,
        )
        notebook.run("x = s[0] = 2")
        stuck = notebook.start_loop()
        server.torpor(kernel, f"/checkpoints/{first['id']}/restore")
        notebook.until(lambda: notebook.finished(stuck), "the cell that is no more is told so")
        assert notebook.about(stuck, "execute_reply")[0]["status"] == "aborted"
        same = server.torpor(kernel, "/checkpoints")
        assert (same["cell"], same["parent"]) == ("x = s[0] = 1", first["id"])
        server.ask("DELETE", f"api/torpor/kernels/{kernel}/checkpoints/{same['id']}")
        assert notebook.run("print(x, s[0]); s[0] = 9") == "1 1\n"
        listed = server.get(f"api/torpor/kernels/{kernel}/checkpoints")
        assert [c["name"] for c in listed] == ["first", "before going back to first"]
        assert [c["parent"] for c in listed] == [None, first["id"]]
        undo = listed[-1]
        assert undo["automatic"]
        server.torpor(kernel, f"/checkpoints/{undo['id']}/restore")
        server.post(f"api/kernels/{kernel}/interrupt")
        notebook.until(lambda: notebook.about(stuck, "error"), "the cell that runs again is interrupted")
        notebook.until(lambda: notebook.seen[-1]["content"].get("execution_state") == "idle", "it is over")
        assert notebook.run("print(x, s[0]); unlink()") == "2 2\n"


def test_no_cell_is_lost_while_the_kernel_goes_back(server: Server) -> None:
    """Whenever it was sent, it runs, or its sender is told that it was aborted: once."""
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook, ThreadPoolExecutor(1) as pool:
        notebook.run("x = 1")
        made = server.torpor(kernel, "/checkpoints")
        back = pool.submit(server.torpor, kernel, f"/checkpoints/{made['id']}/restore")
        sent: list[str] = []
        while not back.done():
            sent.append(notebook.start(f"print(x, {len(sent)})"))
            wait([back], 0.1)
        back.result()
        notebook.run("print(x)")
        assert all(map(notebook.finished, sent))
        for number, id in enumerate(sent):
            (reply,) = notebook.about(id, "execute_reply")
            assert reply["status"] == "aborted" or notebook.output(id) == f"1 {number}\n", (number, reply)


TWICE = """
kernel = get_ipython().kernel
message = kernel.session.msg("status", {"execution_state": "busy"}, parent=kernel.get_parent())
for _ in range(2):
    kernel.iopub_socket.send_multipart(kernel.session.serialize(message, ident=b"status"))
"""


def test_a_message_that_comes_twice_leaves_nobody_deaf(server: Server) -> None:
    """As from a kernel that goes back to a checkpoint which was made while a message was on its way."""
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run(TWICE)
        assert notebook.run("print(1)") == "1\n"
        wait_until(lambda: server.get(f"api/kernels/{kernel}")["execution_state"] == "idle", "the server hears it")
    assert "Duplicate Signature" not in server.tail()


def test_checkpoints_are_named_pinned_and_deleted(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run("x = 1")
    made = server.torpor(kernel, "/checkpoints")
    path = f"api/torpor/kernels/{kernel}/checkpoints/{made['id']}"
    changed = server.ask("PATCH", path, {"name": "début", "pinned": True})
    assert (changed["name"], changed["pinned"], changed["path"]) == ("début", True, "work.ipynb")
    with pytest.raises(Answer, match=r"409.*pinned"):
        server.ask("DELETE", path)
    server.ask("PATCH", path, {"pinned": False})
    assert server.ask("DELETE", path)["freed"] > 0
    assert server.get("api/torpor/checkpoints") == []


def test_a_kernel_that_was_shut_down_comes_back(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run("x = 5")
        made = server.torpor(kernel, "/checkpoints", name="kept")
    server.ask("DELETE", f"api/kernels/{kernel}")
    assert server.get("api/kernels") == []
    server.torpor(kernel, f"/checkpoints/{made['id']}/restore")
    with Notebook(server, kernel) as notebook:
        assert notebook.run("print(x)") == "5\n"


def test_a_culled_kernel_is_parked(ordinary_account: User) -> None:
    options = ("--MappingKernelManager.cull_idle_timeout=8", "--MappingKernelManager.cull_interval=1")
    with running(Server(ordinary_account, *options)) as server:
        _, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as notebook:  # a page is in time, or the kernel is parked before it comes
            cell = notebook.start("x = 5")
            notebook.until_awake(lambda: notebook.finished(cell))
        wait_until(lambda: server.is_parked(kernel), "it is parked")
        with Notebook(server, kernel) as notebook:
            cell = notebook.start("print(x)")
            notebook.until_awake(lambda: notebook.finished(cell))
            assert notebook.output(cell) == "5\n"


def test_a_kernel_that_jupyter_started_without_torpor(ordinary_account: User) -> None:
    with running(Server(ordinary_account, "--TorporApp.start_kernels=False")) as server:
        _, kernel = server.new_session("work.ipynb")
        assert server.kernel(kernel)["pid"] is None
        with Notebook(server, kernel) as notebook:
            notebook.run("x = 5")
            made = server.torpor(kernel, "/checkpoints")
            notebook.run("x = 6")
            server.torpor(kernel, "/park")
            server.torpor(kernel, "/resume")
            assert notebook.run("print(x)") == "6\n"
            server.torpor(kernel, f"/checkpoints/{made['id']}/restore")
            assert notebook.run("print(x)") == "5\n"
            server.post(f"api/kernels/{kernel}/restart")
        with Notebook(server, kernel) as notebook:
            assert notebook.run("print('x' in globals())") == "False\n"
        _, other = server.new_session("other.ipynb")
        server.stop()
        server.start()
        assert {k["id"]: k["state"] for k in server.get("api/torpor/kernels")} == {kernel: "parked"}
        assert other not in {k["id"] for k in server.get("api/kernels")}


def test_no_line_of_output_is_lost(server: Server) -> None:
    """A cell prints while it is frozen and woken five times: each line comes once, in order."""
    lines = 10_000
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        cell = notebook.start(f"import time\nfor n in range({lines}):\n    print(n); time.sleep(0.0004)")
        for part in range(5):
            notebook.until(lambda part=part: len(notebook.output(cell)) > 7000 * (part + 1), "it prints")  # type: ignore[misc]
            server.torpor(kernel, "/park")
            server.torpor(kernel, "/resume")
        assert notebook.finish(cell).split() == [str(n) for n in range(lines)]


IN_PARTS = """
import time, zmq
def work(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until: pass
def send_multipart(self, parts, flags=0, copy=True, track=False, **others):
    for part in parts[:-1]:
        self.send(part, zmq.SNDMORE | flags, copy=copy)
        work(seconds)
    return self.send(parts[-1], flags, copy=copy)
zmq.Socket.send_multipart = send_multipart
"""
"""Much of the time a thread stands between the parts of a message: libzmq has taken some of them, and shows none to its
I/O thread before the last has come; at a wake those in its memory are lost with the connection."""
CELLS = {
    "waits": (0.002, "for n in range(%): print(n, flush=True); time.sleep(0.03)"),
    "computes": (0.0004, "for n in range(%): print(n, flush=True); work(0.05)"),
}


@pytest.mark.parametrize(("seconds", "cell"), CELLS.values(), ids=CELLS.keys())
def test_no_message_is_lost_between_its_parts(server: Server, seconds: float, cell: str) -> None:
    lines = 60
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run(f"seconds = {seconds}{IN_PARTS}")
        running = notebook.start(cell.replace("%", str(lines)))
        for part in range(3):
            notebook.until(lambda part=part: notebook.output(running).count("\n") > 10 * part, "it prints")  # type: ignore[misc]
            server.torpor(kernel, "/park")
            server.torpor(kernel, "/resume")
        assert notebook.finish(running).split() == [str(n) for n in range(lines)]


def test_files_that_were_changed_are_taken_as_they_are_when_that_is_asked(server: Server) -> None:
    """And what a wake will not bring back is told with the checkpoint."""
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run("held = open('data', 'w+'); held.write('x' * 100); held.flush()")
        port = server.url.rpartition(":")[2].strip("/")
        notebook.run(f"import socket; outside = socket.create_connection(('127.0.0.1', {port}))")
        made = server.torpor(kernel, "/checkpoints")
        assert [notice for notice in made["notices"] if f"127.0.0.1:{port}" in notice], made["notices"]
        notebook.run("outside.close()")
        server.torpor(kernel, "/park")
        with (server.root / "data").open("r+") as data:
            data.write("y")
        with pytest.raises(Answer, match="409") as told:
            server.torpor(kernel, "/resume")
        assert told.value.body["only_files"], told.value.body
        assert ["data" in detail for detail in told.value.body["details"]] == [True]
        woken = server.torpor(kernel, "/resume", files_as_they_are=True)
        assert woken["state"] == "living"
        assert notebook.run("held.seek(0); print(held.read(2))") == "yx\n"
        with pytest.raises(Answer, match="409") as told:
            server.torpor(kernel, "/resume")
        assert not told.value.body["only_files"]
    counts = server.get("metrics")["message"]
    assert 'torpor_checkpoints_total{result="saved"} ' in counts
    assert 'torpor_restores_total{result="RestoreRefused"} ' in counts
    assert 'torpor_refusals_total{of="restore",reason="it was changed since the checkpoint: ' in counts


def test_no_room_for_records_costs_no_kernel(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run("x = 5")
        server.torpor(kernel, "/checkpoints")
        folders = [server.store / "jupyter" / name for name in ("kernels", "checkpoints")]
        for folder in folders:
            folder.chmod(0o500)
        try:
            parked = server.torpor(kernel, "/park")
            assert parked["state"] == "parked"
            woken = server.torpor(kernel, "/resume")
            assert (woken["state"], woken["head"]) == ("living", parked["snapshot"])
            assert notebook.run("print(x)") == "5\n"
        finally:
            for folder in folders:
                folder.chmod(0o700)


def test_kernels_outlive_their_server(server: Server) -> None:
    session, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        pid = int(notebook.run("import os; x = 6; print(os.getpid())"))
    for how in ("stop", "interrupt", "kill", "refuse"):
        if how == "kill":  # a crash of the server comes at any time: but the notebook was written down
            wait_until(lambda: "work.ipynb" in _records(server), "the session is written down")
        if how == "refuse":  # what cannot be kept is not ended
            with Notebook(server, kernel) as notebook:
                notebook.run("from socket import *; link = socket(AF_NETLINK, SOCK_RAW, 16)")
            with pytest.raises(Answer, match=r"409.*netlink"):
                server.torpor(kernel, "/park")
            told = server.kernel(kernel)
            (cause,) = told["unsaved"]["causes"]
            assert "a netlink socket" in cause["why"] and cause["why"].endswith("(variable link)")
            assert told["at_stop"] == "living"
        outside = server.kernel(kernel)["pid"]
        getattr(server, "stop" if how == "refuse" else how)()
        lives = how in ("kill", "refuse")
        assert os.path.exists(f"/proc/{outside}") == lives
        server.start()
        (model,) = server.get("api/sessions")
        assert (model["id"], model["path"], model["kernel"]["id"]) == (session, "work.ipynb", kernel)
        assert server.kernel(kernel)["state"] == ("living" if lives else "parked")
        with Notebook(server, kernel) as notebook:
            answer = notebook.start("print(x * 7, os.getpid())")
            if not lives:
                server.torpor(kernel, "/resume")
            assert notebook.finish(answer) == f"42 {pid}\n"
    with Notebook(server, kernel) as notebook:
        notebook.run("link.close()")
    server.torpor(kernel, "/park")
    server.torpor(kernel, "/resume")
    server.post(f"api/kernels/{kernel}/restart")
    with Notebook(server, kernel) as notebook:
        assert notebook.run("print('x' in globals())") == "False\n"


def _records(server: Server) -> str:
    folder = server.store / "jupyter" / "kernels"
    return "".join(path.read_text() for path in folder.glob("*.json"))
