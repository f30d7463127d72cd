"""jupyter_server's own tests with Torpor in each server, and requests that the API's description allows, at random."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api import DESCRIPTION
from tests.jupyter import TOKEN, Notebook, Server, running
from tests.users import User

BUILD = Path(__file__).parents[2] / "build"
SUITE = BUILD / "jupyter_server"
SCHEMATHESIS = BUILD / "programs" / "bin" / "schemathesis"
PLUGIN = """
import pytest
from jupyter_server.serverapp import ServerApp

find = ServerApp.find_server_extensions

def with_torpor(self):
    find(self)
    self.jpserver_extensions.update({"torpor_jupyter": True})

ServerApp.find_server_extensions = with_torpor

@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TORPOR_STORE", str(tmp_path / "torpor"))
"""
BY_DESIGN = [
    f"tests/services/kernels/test_cull.py::{test}[jp_server_config1]"
    for test in ("test_cull_idle", "test_cull_connected")
]
"""What Torpor changes: a culled kernel is parked, and its id stays."""
CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"


@pytest.mark.soak
@pytest.mark.skipif(not SUITE.is_dir(), reason="needs jupyter_server's tests, which `make soak` gets")
@pytest.mark.parametrize("part", ["test_gateway.py", "services/sessions", "services/kernels", "services/events"])
def test_what_jupyter_server_promises_holds(part: str, tmp_path: Path) -> None:
    (tmp_path / "with_torpor.py").write_text(PLUGIN)
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "--color=no", "-W", "ignore", "-p", "no:cacheprovider", "-p",
            "no:xdist", "-p", "with_torpor", "--show-capture=no", *(f"--deselect={test}" for test in BY_DESIGN),
            f"tests/{part}",
        ],
        cwd=SUITE, env=os.environ | {"PYTHONPATH": f"{SUITE / 'needs'}:{tmp_path}"}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.soak
@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="needs schemathesis, which `make soak` installs")
def test_every_answer_is_one_that_is_described(ordinary_account: User, tmp_path: Path) -> None:
    with running(Server(ordinary_account)) as server:
        _, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as notebook:
            notebook.run("x = 1")
            made = server.torpor(kernel, "/checkpoints")["id"]
        known = DESCRIPTION.read_text()
        for name, id in (("kernel_id", kernel), ("checkpoint_id", made)):
            any_one = f"{name}: {{name: {name}, in: path, required: true, schema: {{type: string"
            assert any_one in known
            known = known.replace(any_one, f"{any_one}, enum: ['{id}']")
        (tmp_path / "api.yaml").write_text(known)
        ran = subprocess.run(
            [
                SCHEMATHESIS, "run", tmp_path / "api.yaml", "--url", server.url, "--header",
                f"Authorization: token {TOKEN}", "--phases", "fuzzing", "--checks", CHECKS, "--max-examples", "8",
                "--exclude-method", "DELETE", "--request-timeout", "60", "--continue-on-failure", "--no-color",
            ],
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
