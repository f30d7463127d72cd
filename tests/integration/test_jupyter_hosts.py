"""Two hosts with one store: a kernel that was parked on one goes on at the other."""

from __future__ import annotations

import os

import pytest

from tests.jupyter import Answer, Notebook, Server, running, wait_until
from tests.users import User

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of an ordinary user's server need root")

WHERE = "import os, socket, sys; print(socket.gethostname(), os.environ['JUPYTER_RUNTIME_DIR'])"


def test_a_kernel_moves_to_another_host(ordinary_account: User) -> None:
    """Other name, other PIDs, other runtime directory; both servers run at the same time at last."""
    alpha = Server(ordinary_account, name="alpha", host="alpha")
    beta = Server(ordinary_account, name="beta", host="beta")
    assert alpha.runtime != beta.runtime
    with running(alpha):
        session, kernel = alpha.new_session("work.ipynb")
        with Notebook(alpha, kernel) as notebook:
            assert notebook.run(WHERE).split() == ["alpha", str(alpha.runtime)]
            notebook.run("x = [1]; pid = os.getpid(); file = open('open.txt', 'w+')")
            _, other = alpha.new_session("stays.ipynb")
            with Notebook(alpha, other) as second:
                second.run("y = 6")
            wait_until(lambda: "stays.ipynb" in records(alpha), "the living kernel is written down")
            alpha.torpor(kernel, "/park")
            with running(beta):
                # A kernel that lives on another host is left alone: its record, too.
                assert [k["id"] for k in beta.get("api/torpor/kernels")] == [kernel]
                assert "stays.ipynb" in records(alpha)
                beta.torpor(kernel, "/resume")
                with Notebook(beta, kernel) as there:
                    assert there.run("x.append(2); print(x, pid == os.getpid())") == "[1, 2] True\n"
                    assert there.run("print(socket.gethostname())") == "beta\n"
                    there.run("print('written', file=file, flush=True)")
                (model,) = beta.get("api/sessions")
                assert (model["id"], model["kernel"]["id"]) == (session, kernel)
                wait_until(lambda: kernel not in {k["id"] for k in alpha.get("api/kernels")}, "alpha has let it go")
                with pytest.raises(Answer, match="404"):
                    alpha.torpor(kernel, "/resume")
                with Notebook(alpha, other) as second:
                    assert second.run("print(y)") == "6\n"
                beta.torpor(kernel, "/park")
                beta.stop()
            assert (alpha.root / "open.txt").read_text() == "written\n"


def records(server: Server) -> str:
    folder = server.store / "jupyter" / "kernels"
    return "".join(path.read_text() for path in folder.glob("*.json"))
