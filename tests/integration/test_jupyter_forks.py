"""Forks of real kernels: a second one from a checkpoint that runs beside the first."""

from __future__ import annotations

import json

import pytest

from tests.jupyter import Answer, Notebook, Server

CELL: dict[str, object] = {
    "cell_type": "code",
    "id": "one",
    "execution_count": None,
    "metadata": {},
    "outputs": [],
    "source": "x = 1",
}
TOLD = """
import json, os
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
print(json.dumps([x, os.getpid(), [app.shell_port, app.iopub_port, app.stdin_port, app.hb_port, app.control_port],
    app.session.key.decode(), app.session.session, app.connection_file, os.environ["JPY_SESSION_NAME"]]))
"""

LOGS = """
import os
found = set()
for fd in os.listdir("/proc/self/fd"):
    try:
        found.add(os.readlink(f"/proc/self/fd/{fd}"))
    except FileNotFoundError:
        pass  # the look's own, or one that another thread has closed by now
print([path for path in found if path.endswith(".log")])
"""


def test_a_fork_runs_beside_the_first(server: Server) -> None:
    server.write_notebook("work.ipynb", [CELL])
    _, first = server.new_session("work.ipynb")
    with Notebook(server, first) as notebook:
        notebook.run("x = [1]")
        made = server.torpor(first, "/checkpoints", name="start")
        assert made["has_notebook"]
        notebook.run("x.append(2)")
        fork = server.torpor(first, f"/checkpoints/{made['id']}/fork")
        second = fork["kernel"]["id"]
        assert fork["path"] == "work-fork1.ipynb"
        assert (fork["kernel"]["state"], fork["kernel"]["head"]) == ("living", made["id"])
        assert second != first
        assert server.source(fork["path"]) == "x = 1"
        with Notebook(server, second) as beside:
            beside.run("x.append(3)")
            mine, other = (json.loads(n.run(TOLD)) for n in (notebook, beside))
            assert (mine[0], other[0]) == ([1, 2], [1, 3])
            assert mine[1] == other[1]  # in PID namespaces of their own
            assert not set(mine[2]) & set(other[2])
            assert not {*mine[3:7]} & {*other[3:7]}
            assert other[6] == str(server.root / "work-fork1.ipynb")
            folder = server.store / "jupyter" / "logs"
            assert notebook.run(LOGS) == f"['{folder / first}.log']\n"
            assert beside.run(LOGS) == f"['{folder / second}.log']\n"
            # What a forked child prints comes to its own notebook, and only there.
            child = "import os, sys\nif not os.fork():\n    print('child', flush=True); os._exit(0)\n_ = os.wait()"
            id = beside.start(child)
            beside.until(lambda: "child" in beside.printed(), "the child's word comes")
            beside.finish(id)
            assert "child" not in notebook.printed()
            # It is a kernel like any other: saved, parked, woken, interrupted, restarted, ended.
            parked = server.torpor(second, "/park")
            assert parked["state"] == "parked"
            server.torpor(second, "/resume")
            assert beside.run("print(x)") == "[1, 3]\n"
            stuck = beside.start_loop()
            server.post(f"api/kernels/{second}/interrupt")
            beside.until(lambda: beside.about(stuck, "error"), "it is interrupted")
        sessions = {session["path"]: session["kernel"]["id"] for session in server.get("api/sessions")}
        assert sessions == {"work.ipynb": first, "work-fork1.ipynb": second}
        again = server.torpor(first, f"/checkpoints/{made['id']}/fork")
        assert again["path"] == "work-fork2.ipynb"
        server.ask("DELETE", f"api/kernels/{first}")
        with Notebook(server, again["kernel"]["id"]) as third:
            assert third.run("print(x)") == "[1]\n"
        with Notebook(server, second) as beside:
            assert beside.run("print(x)") == "[1, 3]\n"


def test_what_cannot_be_forked_is_refused(server: Server) -> None:
    server.write_notebook("work.ipynb", [CELL])
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        cell = notebook.start_loop()
        busy = server.torpor(kernel, "/checkpoints")
        with pytest.raises(Answer, match=r"409.*a cell was running"):
            server.torpor(kernel, f"/checkpoints/{busy['id']}/fork")
        server.post(f"api/kernels/{kernel}/interrupt")
        notebook.until(lambda: notebook.finished(cell), "it is interrupted")
        plain = server.torpor(kernel, "/checkpoints")
        with pytest.raises(Answer, match=r"409.*cannot be the new notebook"):
            server.torpor(kernel, f"/checkpoints/{plain['id']}/fork", path="work.ipynb")
        with pytest.raises(Answer, match=r"409.*outside root"):
            server.torpor(kernel, f"/checkpoints/{plain['id']}/fork", path="../../x.ipynb")
        notebook.run("import socket; listener = socket.create_server(('127.0.0.1', 0)); listener.listen()")
        listening = server.torpor(kernel, "/checkpoints")
        with pytest.raises(Answer, match=r"409.*cannot be forked"):
            server.torpor(kernel, f"/checkpoints/{listening['id']}/fork")
    assert len(server.get("api/kernels")) == 1
    assert [path.name for path in server.root.glob("*.ipynb")] == ["work.ipynb"]


def test_the_notebook_comes_back_with_its_kernel(server: Server) -> None:
    server.write_notebook("work.ipynb", [CELL])
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run("x = 1")
        first = server.torpor(kernel, "/checkpoints")
        server.write_notebook("work.ipynb", [CELL | {"source": "x = 2"}])
        notebook.run("x = 2")
        gone = server.torpor(kernel, f"/checkpoints/{first['id']}/restore", notebook=True)
        assert (gone["notebook"], gone["notebook_kept"]) == ("work.ipynb", None)
        assert notebook.run("print(x)") == "1\n"
        assert server.source("work.ipynb") == "x = 1"
        server.torpor(kernel, f"/checkpoints/{gone['undo']}/restore", notebook=True)
        assert (notebook.run("print(x)"), server.source("work.ipynb")) == ("2\n", "x = 2")
        # Without a checkpoint of what is now, the file is kept beside.
        server.write_notebook("work.ipynb", [CELL | {"source": "x = 3"}])
        last = server.torpor(kernel, f"/checkpoints/{first['id']}/restore", notebook=True, discard=True)
        assert (last["notebook"], last["notebook_kept"]) == ("work.ipynb", "work-before1.ipynb")
        assert (server.source("work.ipynb"), server.source("work-before1.ipynb")) == ("x = 1", "x = 3")
        kept = server.store / "jupyter" / "notebooks"
        assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600}
    _, other = server.new_session("missing.ipynb")
    made = server.torpor(other, "/checkpoints")
    assert not made["has_notebook"]
    with pytest.raises(Answer, match=r"409.*no notebook is kept"):
        server.torpor(other, f"/checkpoints/{made['id']}/restore", notebook=True)
