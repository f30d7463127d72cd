"""Torpor for those without JupyterLab: magics in a cell, `jupyter torpor` in a terminal, kernels without a server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.jupyter import Notebook, Server, answers, connected, printed, wait_until
from tests.users import BIN, User


def test_magics_under_a_server(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as notebook:
        notebook.run("%load_ext torpor\nx = 1")
        assert notebook.run("%checkpoints") == "There are none.\n"
        saved = notebook.start("%checkpoint one\nx += 1; print('x is', x)")
        said = notebook.finish(saved)
        assert said.startswith("Saved as “one”, ")
        assert said.endswith("x is 2\n")
        (made,) = server.get(f"api/torpor/kernels/{kernel}/checkpoints")
        assert (made["name"], made["automatic"], made["execution_state"]) == ("one", False, "busy")
        assert made["id"] in notebook.run("%checkpoints")
        with pytest.raises(AssertionError, match="'nonsense' is not one of its checkpoints"):
            notebook.run("%rewind nonsense")
        notebook.run("x = 7")
        # The kernel goes back into the middle of the cell, and on with its next line.
        going = notebook.start("%rewind one")
        notebook.until(lambda: notebook.finished(going), "the cell that is no more is told so")
        notebook.until(lambda: "The kernel is back at “one”" in notebook.printed(), "the cell goes on")
        assert notebook.run("print(x)") == "2\n"


def test_the_command(server: Server) -> None:
    server.write_notebook("work.ipynb", [])
    _, kernel = server.new_session("work.ipynb")
    environment = {"JUPYTER_RUNTIME_DIR": str(server.user.tmp / "runtime")}

    def torpor(*arguments: str, code: int = 0) -> str:
        done = server.user.run([BIN / "jupyter", "torpor", *arguments], env=environment)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    with Notebook(server, kernel) as notebook:
        notebook.run("x = 1")
        (listed,) = json.loads(torpor("list", "--json"))
        assert (listed["id"], listed["state"], listed["server"]) == (kernel, "living", server.url)
        assert "saved as" in torpor("checkpoint", kernel[:8], "--name", "one")
        notebook.run("x = 2")
        assert "parked in" in torpor("park", "work.ipynb")
        assert "parked" in torpor("list")
        assert "woken as" in torpor("resume", "work.ipynb")
        assert notebook.run("print(x)") == "2\n"
        forked = json.loads(torpor("fork", "work.ipynb", "one", "--json"))
        with Notebook(server, forked["kernel"]["id"]) as fork:
            assert fork.run("print(x)") == "1\n"
        assert "back at" in torpor("restore", kernel, "one")
        assert notebook.run("print(x)") == "1\n"
        assert "one" in torpor("checkpoints", "work.ipynb")
        exported = server.root / "one.torpor"
        assert f"exported to {exported}" in torpor("export", "work.ipynb", "one", str(exported))
        server.ask("DELETE", f"api/kernels/{kernel}")
        (made,) = [one for one in json.loads(torpor("checkpoints", kernel, "--json")) if one["name"] == "one"]
        server.ask("DELETE", f"api/torpor/kernels/{kernel}/checkpoints/{made['id']}")
        assert f"jupyter torpor fork {kernel[:8]}" in torpor("import", str(exported))
        forked = json.loads(torpor("fork", kernel[:8], "one", "--json"))
        with Notebook(server, forked["kernel"]["id"]) as fork:
            assert fork.run("print(x)") == "1\n"
        assert "no kernel 'other'" in torpor("park", "other", code=11)


@pytest.mark.parametrize(
    "output",
    [pytest.param(subprocess.DEVNULL, id="nowhere", marks=pytest.mark.soak), pytest.param(subprocess.PIPE, id="pipes")],
)
def test_a_kernel_without_a_server(ordinary_account: User, output: int) -> None:
    """As `jupyter console` or VS Code starts one: it saves itself by a helper, and wakes when it has ended."""
    user = ordinary_account
    connection, store = user.tmp / "kernel.json", user.tmp / "store"
    environment = {"TORPOR_STORE": str(store), "IPYTHONDIR": str(user.tmp / "ipython")}
    ends = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
    # Its database of cells does not go back with it, and would say so in the middle of what a cell prints.
    launcher: list[str | Path] = [BIN / "python", "-m", "ipykernel_launcher", "-f", connection]
    process = user.popen([*launcher, "--HistoryManager.enabled=False"], env=environment, **ends)
    try:
        with connected(connection) as client:
            module = "open('json.py', 'w').write('raise SystemExit(1)')"  # one in the notebook's directory
            cell = f"%load_ext torpor\nx = {module}\nx = 5\n%checkpoint alone\nprint('x is', x)"
            assert "Saved as" in printed(client, cell)
            assert "alone" in printed(client, "%checkpoints")
            reply = client.execute("%rewind alone", reply=True, timeout=60)["content"]
            assert reply["ename"] == "UsageError"
            assert "cannot be rewound in place" in reply["evalue"]
            kept = connection.read_text()
            # Not by client.shutdown(): one kernel in ten hangs then, with or without Torpor (ipykernel 7.4: its control
            # thread flushes what its main thread has closed).
            process.kill()
            process.wait()
            connection.write_text(kept)
            user.own(connection)
            with open(user.tmp / "log", "ab") as log:
                woken = user.popen(
                    [BIN / "torpor", "restore", "latest"], env=environment, stdin=log, stdout=log, stderr=log
                )
            try:
                wait_until(lambda: answers(client), "it answers again")
                assert "5" in printed(client, "print(x)")
                woken.terminate()
                woken.wait(60)
            finally:
                if woken.poll() is None:
                    woken.kill()
                    woken.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
